"""Settings of what encodes before the network: captions to features, pictures to latents."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Where the network's input lives: pixels, or the latents of a pretrained autoencoder."""

    kind: Literal["pixels", "kl"] = "pixels"
    """`pixels`: images in [-1, 1] as they are; `kl`: diffusers' AutoencoderKL."""
    path: str = ""
    """Folder with `config.json` and safetensors weights; for `kl` only."""

    def __post_init__(self) -> None:
        require(
            (self.kind == "kl") == bool(self.path),
            "autoencoder.path",
            self.path,
            "a folder exactly when autoencoder.kind is 'kl'",
        )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become features."""

    kind: Literal["sentencepiece", "open_clip"] = "sentencepiece"
    """`sentencepiece`: a tokenizer and a small encoder trained along; `open_clip`: a frozen text tower."""
    vocabulary: int = 512
    """Pieces of the sentencepiece model (an upper limit: small caption sets give fewer)."""
    max_tokens: int = 24
    """Tokens a caption, end token included; longer captions are cut and counted."""
    width: int = 128
    """Width of the trained encoder."""
    depth: int = 2
    """Blocks of the trained encoder."""
    heads: int = 4
    """Attention heads of the trained encoder."""
    open_clip_name: str = "ViT-L-14"
    """Architecture name known to open_clip."""
    open_clip_weights: str = ""
    """Local weight file or `local-dir:` folder; for `open_clip` only."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 2, "text.max_tokens", self.max_tokens, "at least 2")
        for name in ("width", "depth", "heads"):
            require(getattr(self, name) >= 1, f"text.{name}", getattr(self, name), "at least 1")
        require(
            self.width % self.heads == 0, "text.width", self.width, f"a multiple of text.heads ({self.heads})"
        )
        require(
            (self.kind == "open_clip") == bool(self.open_clip_weights),
            "text.open_clip_weights",
            self.open_clip_weights,
            "a local file or folder exactly when text.kind is 'open_clip'",
        )
