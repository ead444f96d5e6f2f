"""Bytes of frozen networks from the headers of their files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.plan.frozen import frozen_bytes


def config_with(folder: Path, *settings: str) -> Config:
    kind = ["autoencoder.kind=diffusers", f"autoencoder.path={folder}", "model.channels=4"]
    return load_config(None, ["model.conditioning=class", "model.num_classes=5", *kind, *settings])


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_every_number_of_every_file_counts_in_the_format_it_is_loaded_in(
    tmp_path: Path, precision: str, bytes_each: int
) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "x-1.safetensors", {"a": "text"})
    save_file({"c": torch.zeros(2, 2, dtype=torch.float16)}, tmp_path / "x-2.safetensors")
    config = config_with(tmp_path, f"autoencoder.precision={precision}")
    assert frozen_bytes(config) == (12 + 5 + 4) * bytes_each


def test_weights_that_are_not_there_are_not_known(tmp_path: Path) -> None:
    assert frozen_bytes(config_with(tmp_path / "absent")) is None
    assert frozen_bytes(load_config(None, [])) == 0  # pixels, and a text encoder that is trained


def test_a_path_may_be_a_file_whose_bytes_are_known_for_safetensors_alone(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4)}, tmp_path / "x.safetensors")
    assert frozen_bytes(config_with(tmp_path / "x.safetensors", "autoencoder.precision=fp32")) == 48
    (tmp_path / "x.pt").write_bytes(b"weights")
    assert frozen_bytes(config_with(tmp_path / "x.pt")) is None


def with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        with_length(b"hello"),
        with_length(b"[]"),
        with_length(b'{"a": 3}'),
        with_length(b'{"a": {}}'),
        with_length(b'{"a": {"shape": 3}}'),
        b"\xff" * 8 + b"hello",
    ],
)
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors is no safetensors file"):
        frozen_bytes(config_with(tmp_path))
