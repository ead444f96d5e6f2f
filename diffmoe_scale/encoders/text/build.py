"""The text encoder that a config names."""

from pathlib import Path

import torch

from diffmoe_scale.config.encoders import TextConfig
from diffmoe_scale.encoders.text.clip import build_open_clip, open_clip_widths
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import StreamWidths
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.text.tokenizer import END, Tokenizer, load_tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder


def stream_widths(config: TextConfig) -> tuple[StreamWidths, ...]:
    """The shapes of the features of each encoder, without reading weights.

    Raises: ValueError for missing files or an unknown architecture.
    """
    match config.kind:
        case "sentencepiece":
            return (StreamWidths(config.kind, config.width, config.width),)
        case "open_clip":
            return (StreamWidths(config.kind, *open_clip_widths(config)),)


def build_text_encoders(config: TextConfig, *, tokenizer_path: Path) -> TextEncoders:
    """The encoders of a config. Raises: as `build_text_encoder` does."""
    return TextEncoders((build_text_encoder(config, tokenizer_path=tokenizer_path),), (config.kind,))


def build_text_encoder(config: TextConfig, *, tokenizer_path: Path) -> TextEncoder:
    """The encoder of a config: a frozen one on the CPU, one that is trained along without its weights yet.

    Raises: ValueError for a missing tokenizer, missing or unfit weights, an unknown architecture.
    """
    match config.kind:
        case "sentencepiece":
            processor = load_tokenizer(tokenizer_path, vocabulary=config.vocabulary)
            tokenizer = Tokenizer(processor.encode, start=[], end=END, max_tokens=config.max_tokens)
            with torch.device("meta"):
                return TrainedTextEncoder(config, tokenizer, vocabulary=processor.vocab_size())
        case "open_clip":
            return build_open_clip(config)
