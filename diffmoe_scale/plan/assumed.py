"""Shapes of frozen networks whose folder is not on this machine, by its name: a plan can be made before
gigabytes are copied."""

import logging
from dataclasses import replace
from pathlib import Path

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.text import LOCAL_FOLDER, TextConfig, TextEncoderConfig
from diffmoe_scale.encoders.autoencoder.build import latent_format
from diffmoe_scale.encoders.text.build import stream_widths
from diffmoe_scale.encoders.text.features import StreamWidths

logger = logging.getLogger(__name__)

FACTORS = {"flux2": 16, "flux.2": 16, "dc-ae": 32, "f32": 32, "f64": 64, "f16": 16, "vae": 8, "sd": 8}
"""By what a folder's name holds, how much smaller latents are; the first that fits counts."""
WIDTHS = {
    "t5-base": 768,
    "t5-large": 1024,
    "t5-xl": 2048,
    "t5-xxl": 4096,
    "t5gemma-2b": 2304,
    "gemma-2-2b": 2304,
    "gemma-2-9b": 3584,
    "gemma-3-1b": 1152,
    "gemma-3-4b": 2560,
    "qwen3-0.6b": 1024,
    "qwen3-1.7b": 2048,
    "qwen3-4b": 2560,
    "qwen3-8b": 4096,
    "vit-l": 768,
    "clip-l": 768,
    "vit-h": 1024,
    "bigg": 1280,
}
"""By what the name of a text encoder's folder or architecture holds, how wide its tokens are; the longest
that fits counts."""


def latents_of(config: AutoencoderConfig, *, channels: int) -> tuple[int, int]:
    """Channels of latents and the factor by which they are smaller than images; `channels` where the folder
    is not there but its name says what it holds.

    Raises: ValueError for a folder that does not hold an autoencoder, or is not there and has another name.
    """
    if config.kind == "pixels" or Path(config.path).exists():
        return latent_format(config)
    name = Path(config.path).name.lower()
    factor = next((factor for word, factor in FACTORS.items() if word in name), None)
    if factor is None:
        return latent_format(config)  # says that it is missing
    _say(f"{config.path} is not there: latents of {channels} channels, {factor} times smaller, are assumed")
    return channels, factor


def streams_of(config: TextConfig) -> tuple[StreamWidths, ...]:
    """The shapes of the features of each text encoder. Raises: ValueError as `encoders.text.build` does, for
    folders that are not there unless their name says what they hold."""
    assumed = {number: width for number, one in enumerate(config.listed()) if (width := _assumed_width(one))}
    if not assumed:
        return stream_widths(config)
    widths = []
    for number, encoder in enumerate(config.listed()):
        if number in assumed:
            pooled = assumed[number] if encoder.kind == "open_clip" else 0
            widths.append(StreamWidths(f"{encoder.kind}_{number}", assumed[number], pooled))
        else:
            alone = replace(config, encoders=(encoder,)) if config.encoders else config
            widths.append(replace(stream_widths(alone)[0], name=f"{encoder.kind}_{number}"))
    return tuple(widths)


def _assumed_width(encoder: TextEncoderConfig) -> int:
    """0 for an encoder whose files are there, or whose name says nothing."""
    path = encoder.path.removeprefix(LOCAL_FOLDER)
    if encoder.kind == "sentencepiece" or Path(path).exists():
        return 0
    name = f"{encoder.architecture} {Path(path).name}".lower()
    words = [word for word in WIDTHS if word in name]
    if not words:
        return 0
    width = WIDTHS[max(words, key=len)]
    _say(f"{path} is not there: tokens {width} wide are assumed")
    return width


_SAID: set[str] = set()


def _say(sentence: str) -> None:
    """Once a process."""
    if sentence not in _SAID:
        _SAID.add(sentence)
        logger.warning("%s", sentence)
