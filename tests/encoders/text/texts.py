"""Captions and encoders that the tests of this folder share."""

from pathlib import Path
from typing import Any  # keyword arguments of torch's comparison

import torch

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder

CAPTIONS = [
    f"{count} {color} {shape}s left of a {other} star"
    for count in ("two", "three")
    for color in ("red", "blue", "green")
    for shape in ("circle", "square")
    for other in ("yellow", "purple")
]
SHORT, LONG = "two red circles", "three green squares left of a yellow star"
# fp32 sums in another order.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
TOWER: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


def trained_encoder(config: TextConfig, tokenizer_path: Path, *, seed: int = 0) -> TrainedTextEncoder:
    encoder = build_text_encoder(config, tokenizer_path=tokenizer_path)
    assert isinstance(encoder, TrainedTextEncoder)
    encoder.to_empty(device="cpu").initialize(seed)
    return encoder


def encode(encoder: TextEncoder, captions: list[str]) -> TextStream:
    features: TextStream = encoder(encoder.tokenize(captions))
    return features


def load_encoder(config: TextConfig, number: int = 0) -> FrozenTextEncoder:
    """A frozen encoder with its weights."""
    encoder = build_text_encoder(config, number, tokenizer_path=Path("unused"))
    assert isinstance(encoder, FrozenTextEncoder)
    encoder.load(torch.device("cpu"))
    return encoder
