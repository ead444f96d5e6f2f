"""Settings of what makes features of captions."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import FREE, PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section, name="text"):
    """How captions become features."""

    kind: Literal["sentencepiece", "open_clip"] = "sentencepiece"
    """`sentencepiece`: a tokenizer and a small encoder trained along; `open_clip`: a frozen text tower."""
    vocabulary: Annotated[int, Range(260, 1_000_000), FREE] = 512
    """Pieces of the sentencepiece model (an upper limit: small caption sets give fewer)."""
    max_tokens: Annotated[int, Range(2, 8192)] = 24
    """Tokens a caption, end token included; longer captions are cut and counted."""
    width: Annotated[int, Range(1, 65_536)] = 128
    """Width of the trained encoder."""
    depth: Annotated[int, Range(1, 1000)] = 2
    """Blocks of the trained encoder."""
    heads: Annotated[int, Range(1, 1024)] = 4
    """Attention heads of the trained encoder."""
    open_clip_name: str = "ViT-L-14"
    """Architecture name known to open_clip."""
    open_clip_weights: Annotated[str, PATH, FREE] = ""
    """Local weight file or `local-dir:` folder; for `open_clip` only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.width % self.heads == 0, "text.width", self.width, f"a multiple of text.heads ({self.heads})"
        )
        require(
            (self.kind == "open_clip") == bool(self.open_clip_weights),
            "text.open_clip_weights",
            self.open_clip_weights,
            "a local file or folder exactly when text.kind is 'open_clip'",
        )
