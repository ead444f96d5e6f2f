"""A frozen open_clip text tower from local files.

B captions, L tokens, T token width, V pooled width.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any  # open_clip's towers, tokenizers and JSON carry no types

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.check import require
from diffmoe_scale.config.text import TextEncoderConfig
from diffmoe_scale.encoders.fingerprint import WeightFiles, fingerprint
from diffmoe_scale.encoders.text.clip_files import (
    SettingNames,
    local_open_clip,
    unusual_settings,
    weight_files,
    widths_of,
)
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.encoders.text.tokenizer import PAD, Tokenizer
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.words import short_reason

DEFAULT_CONTEXT = 77
"""Of a description that has none: open_clip's."""


class OpenClipEncoder(FrozenTextEncoder):
    """A frozen text tower: its penultimate hidden states, and its pooled and projected feature, both as they
    come (not normalized)."""

    # open_clip's tokenizer carries no types.
    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int,
        context: int,
        widths: tuple[int, int],
        files: WeightFiles,
        name: str,
        read_tower: Callable[[torch.device], nn.Module],
        unusual: tuple[tuple[str, object], ...] = (),
    ) -> None:
        """`unusual`: settings of the architecture that its weights do not show."""
        super().__init__(
            Tokenizer(
                lambda captions: [tokenizer.encode(caption) for caption in captions],
                start=[tokenizer.sot_token_id],
                end=[tokenizer.eot_token_id],
                max_tokens=max_tokens,
            ),
            name=name,
            token_width=widths[0],
            pooled_width=widths[1],
            read_tower=read_tower,
        )
        self.files = files
        self.context_length, self.unusual = context, unusual

    def fingerprint(self) -> str:
        """Of the weights as they are stored, whatever they compute in."""
        settings = type(self).__name__, self.tokenizer.max_tokens, *self.unusual
        return self.files.remember(partial(self._digest, *settings), *settings)

    def _digest(self, *settings: object) -> str:
        tower = self.read_tower(torch.device("cpu")) if self.tower is None else self.tower
        # Names as those of this module, which early fingerprints were of.
        return fingerprint(nn.ModuleDict({"tower": tower}), *settings)

    def mask_of(self, tokens_BL: Tensor) -> Tensor:
        """The end token has the largest id; 0 is padding and also a piece ("!")."""
        places_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        return places_L <= tokens_BL.argmax(1, keepdim=True)

    def encode(self, tokens_BL: Tensor, mask_BL: Tensor) -> TextStream:
        tower: Any = self.tower  # open_clip's towers carry no types
        length = tokens_BL.shape[1]
        # The tower adds one position embedding for each token of its full context. It is causal: padding
        # changes nothing before it.
        padded = F.pad(tokens_BL, (0, self.context_length - length), value=PAD)
        output = tower.forward_intermediates(text=padded, text_indices=2, normalize=False)
        tokens_BLT = output["text_intermediates"][0][:, :length]
        return TextStream(tokens_BLT.float(), mask_BL, output["text_features"].float())


def build_open_clip(config: TextEncoderConfig, names: SettingNames) -> OpenClipEncoder:
    """The encoder of local files, without its weights.

    Raises: ValueError for missing files, an unknown architecture, or captions longer than it reads.
    """
    import open_clip  # seconds, and needed by few

    name, weights = local_open_clip(config, names, open_clip.list_models())
    files = weight_files(name if weights is None else weights)
    with _named_errors(config, names):
        architecture = open_clip.get_model_config(name)
        widths, unusual = widths_of(architecture), unusual_settings(architecture)
        context = int(architecture["text_cfg"].get("context_length", DEFAULT_CONTEXT))
        tokenizer = open_clip.get_tokenizer(name)
    fits = f"at most {context}, the context of {name}"
    require(config.max_tokens <= context, names.max_tokens, config.max_tokens, fits)
    encoder = OpenClipEncoder(
        tokenizer,
        max_tokens=config.max_tokens,
        context=context,
        widths=widths,
        files=files,
        name=f"open_clip of {config.path}",
        read_tower=partial(_read_tower, config, names, name, weights),
        unusual=unusual,
    )
    # A description that makes no network is found before the run begins.
    with _named_errors(config, names), _without_warnings(), torch.device("meta"):
        open_clip.create_model(name, load_weights=False, device="meta")
    return encoder


def _read_tower(
    config: TextEncoderConfig, names: SettingNames, name: str, weights: str | None, device: torch.device
) -> nn.Module:
    import open_clip

    with _named_errors(config, names):
        tower = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        del tower.visual
        return tower.to(device, NUMBER_FORMATS[config.precision])


def open_clip_widths(config: TextEncoderConfig, names: SettingNames) -> tuple[int, int]:
    """Widths of a token's and of a caption's pooled features, from the architecture alone.

    Raises: ValueError as `build_open_clip` does.
    """
    import open_clip  # seconds, and needed by few

    name, _ = local_open_clip(config, names, open_clip.list_models())
    with _named_errors(config, names):
        return widths_of(open_clip.get_model_config(name))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip (3.3) warns of random weights on the root logger; on `meta` there are none."""
    root = logging.getLogger()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.module != "factory"

    root.addFilter(is_of_others)
    try:
        yield
    finally:
        root.removeFilter(is_of_others)


@contextmanager
def _named_errors(config: TextEncoderConfig, names: SettingNames) -> Iterator[None]:
    """What goes wrong becomes a ValueError that names the files."""
    try:
        yield
    except Exception as error:  # torch, safetensors and open_clip each raise their own
        architecture = f" as {names.architecture} {config.architecture!r}" if config.architecture else ""
        reason = f"{type(error).__name__}: {short_reason(error)}"
        raise ValueError(f"{names.path} {config.path!r} does not load{architecture}: {reason}") from error
