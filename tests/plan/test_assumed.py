"""Frozen networks that are not on this machine: their shapes follow from well-known names, or are
asked for."""

import json
import logging
from pathlib import Path

import pytest

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.text import LOCAL_FOLDER, TextConfig, TextEncoderConfig
from diffmoe_scale.plan.assumed import latents_of, streams_of


@pytest.mark.parametrize(
    ("name", "factor"), [("sd-vae", 8), ("flux-vae", 8), ("FLUX2-VAE", 16), ("dc-ae-f32c32", 32)]
)
def test_an_autoencoder_that_is_not_there_shrinks_as_its_name_says(
    name: str, factor: int, tmp_path: Path
) -> None:
    config = AutoencoderConfig(kind="diffusers", path=str(tmp_path / name))
    assert latents_of(config, channels=32) == (32, factor)


def test_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    config = AutoencoderConfig(kind="diffusers", path=str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="mine"):
        latents_of(config, channels=4)
    encoder = TextEncoderConfig(kind="transformers", path=str(tmp_path / "mine"), max_tokens=8)
    with pytest.raises(ValueError, match="mine"):
        streams_of(TextConfig(encoders=(encoder,)))


def test_text_encoders_that_are_not_there_are_as_wide_as_their_names_say(tmp_path: Path) -> None:
    pretrained = TextEncoderConfig(kind="transformers", path=str(tmp_path / "t5-v1_1-T5-XXL"), max_tokens=8)
    trained = TextEncoderConfig(kind="sentencepiece", max_tokens=8)
    found = streams_of(TextConfig(encoders=(pretrained, trained), width=96))
    assert [(one.token, one.pooled) for one in found] == [(4096, 0), (96, 96)]


@pytest.mark.parametrize(
    ("kind", "architecture", "name", "widths"),
    [
        ("transformers", "", "t5-xl-gemma-2-9b", (3584, 0)),  # the longest of the known names in it
        ("open_clip", "ViT-bigG-14", "weights.safetensors", (1280, 1280)),
    ],
)
def test_the_longest_known_name_counts_and_that_of_an_architecture_too(
    kind: str, architecture: str, name: str, widths: tuple[int, int], tmp_path: Path
) -> None:
    encoder = TextEncoderConfig(
        kind=kind,  # type: ignore[arg-type]  # one of the two
        architecture=architecture,
        path=str(tmp_path / name),
        max_tokens=8,
    )
    (found,) = streams_of(TextConfig(encoders=(encoder,)))
    assert (found.token, found.pooled) == widths


def test_folders_that_are_there_are_read_whatever_their_names_say(tmp_path: Path) -> None:
    folder = tmp_path / "flux2-vae"
    folder.mkdir()
    description = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8] * 4}
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    assert latents_of(AutoencoderConfig(kind="diffusers", path=str(folder)), channels=32) == (4, 8)
    (tmp_path / "t5-xxl").mkdir()
    encoder = TextEncoderConfig(kind="transformers", path=str(tmp_path / "t5-xxl"), max_tokens=8)
    with pytest.raises(ValueError, match="t5-xxl"):
        streams_of(TextConfig(encoders=(encoder,)))
    (tmp_path / "vit-h").mkdir()
    clip = TextEncoderConfig(kind="open_clip", path=f"{LOCAL_FOLDER}{tmp_path / 'vit-h'}", max_tokens=8)
    with pytest.raises(ValueError, match="vit-h"):
        streams_of(TextConfig(encoders=(clip,)))


def test_what_is_assumed_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AutoencoderConfig(kind="diffusers", path=str(tmp_path / "sd-vae"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            latents_of(config, channels=4)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'sd-vae'} is not there: latents of 4 channels, 8 times smaller, are assumed"
    ]
