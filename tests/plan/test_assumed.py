"""Frozen networks that are not on this machine: their shapes follow from well-known names, or are
asked for."""

from pathlib import Path

import pytest

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.text import TextConfig, TextEncoderConfig
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
