import json
from pathlib import Path

import pytest

from diffmoe_scale.encoders.autoencoder.folder import read_folder


def test_a_folder_without_a_config_is_named_with_the_one_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*absent'; .*; it has no config\.json$"):
        read_folder(tmp_path / "absent")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    with pytest.raises(ValueError, match=r"it has no config\.json; .*/vae has one: is it meant\?"):
        read_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "\xff", "[]", "3", '"AutoencoderKL"', "null"])
def test_a_config_that_is_no_object_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*its config\.json (does not parse|holds)"):
        read_folder(tmp_path)


def test_the_settings_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    assert read_folder(tmp_path) == {"_class_name": "AutoencoderKL"}
