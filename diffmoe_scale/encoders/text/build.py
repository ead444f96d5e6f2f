"""The text encoders that a config names."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.clip import build_open_clip, open_clip_widths
from diffmoe_scale.encoders.text.clip_files import SettingNames
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import StreamWidths
from diffmoe_scale.encoders.text.pretrained import build_pretrained, pretrained_widths
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.text.tokenizer import END, Tokenizer, load_tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder


def stream_widths(config: TextConfig) -> tuple[StreamWidths, ...]:
    """The shapes of the features of each encoder, without reading weights.

    Raises: ValueError for missing files or an unknown architecture.
    """
    widths: list[StreamWidths] = []
    seen: Counter[str] = Counter()
    for number in range(len(config.listed())):
        found = _widths(config, number)
        seen[found.name] += 1
        is_repeated = seen[found.name] > 1
        widths.append(replace(found, name=f"{found.name}_{seen[found.name]}") if is_repeated else found)
    return tuple(widths)


def _widths(config: TextConfig, number: int) -> StreamWidths:
    encoder = config.listed()[number]
    match encoder.kind:
        case "sentencepiece":
            return StreamWidths(encoder.kind, config.width, config.width)
        case "open_clip":
            return StreamWidths(encoder.kind, *open_clip_widths(encoder, _names(config, number)))
        case "transformers":
            return pretrained_widths(encoder, setting=f"text.encoders.{number}")


def _names(config: TextConfig, number: int) -> SettingNames:
    """What the settings of an open_clip tower are called, in the list or alone."""
    if not config.encoders:
        return SettingNames("text.open_clip_weights", "text.open_clip_name", "text.max_tokens")
    prefix = f"text.encoders.{number}"
    return SettingNames(f"{prefix}.path", f"{prefix}.architecture", f"{prefix}.max_tokens")


def build_text_encoders(config: TextConfig, *, tokenizer_path: Path) -> TextEncoders:
    """The encoders of a config: frozen ones without weights (`TextEncoders.load`), the one that is trained
    along on `meta`.

    Raises: ValueError for a missing tokenizer, missing or unfit weights, an unknown architecture.
    """
    numbers = range(len(config.listed()))
    encoders = [build_text_encoder(config, number, tokenizer_path=tokenizer_path) for number in numbers]
    names = [widths.name for widths in stream_widths(config)]
    return TextEncoders(tuple(encoders), tuple(names))


def build_frozen_encoders(config: TextConfig) -> TextEncoders:
    """Those that are not trained along, whose features can be cached. Raises: as `build_text_encoders`."""
    numbers = [n for n, encoder in enumerate(config.listed()) if encoder.kind != "sentencepiece"]
    encoders = [build_text_encoder(config, number, tokenizer_path=Path()) for number in numbers]
    names = [stream_widths(config)[number].name for number in numbers]
    return TextEncoders(tuple(encoders), tuple(names))


def build_text_encoder(config: TextConfig, number: int = 0, *, tokenizer_path: Path) -> TextEncoder:
    """Encoder `number` of a config. Raises: as `build_text_encoders`."""
    encoder = config.listed()[number]
    match encoder.kind:
        case "sentencepiece":
            processor = load_tokenizer(tokenizer_path, vocabulary=config.vocabulary)
            tokenizer = Tokenizer(processor.encode, start=[], end=[END], max_tokens=encoder.max_tokens)
            with torch.device("meta"):
                return TrainedTextEncoder(config, tokenizer, vocabulary=processor.vocab_size())
        case "open_clip":
            return build_open_clip(encoder, _names(config, number))
        case "transformers":
            return build_pretrained(encoder, setting=f"text.encoders.{number}")
