"""Settings of the text encoders: captions to features."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import FREE, PATH, Range, Section

LOCAL_FOLDER = "local-dir:"
"""What open_clip puts before a folder."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Section, name="text.encoders.N"):
    """One of several text encoders, each of which gives a stream of tokens."""

    kind: Literal["sentencepiece", "open_clip", "transformers"]
    """`sentencepiece`: a small encoder trained along, of text.width, text.depth, text.heads and
    text.vocabulary; `open_clip`: a frozen text tower; `transformers`: a frozen T5 or decoder model."""
    path: Annotated[str, PATH, FREE] = ""
    """`transformers`: a folder with config.json and safetensors weights, and the tokenizer unless `tokenizer`
    is given; `open_clip`: a weight file, or `local-dir:` and a folder."""
    tokenizer: Annotated[str, PATH, FREE] = ""
    """Folder of the tokenizer of `transformers` where it is not in `path`, as in diffusers' models."""
    architecture: str = ""
    """Architecture that `open_clip` knows a weight file by."""
    max_tokens: Annotated[int, Range(2, 8192)]
    """Tokens a caption, special ones included; longer captions are cut and counted."""
    layer: Annotated[int, Range(-1000, 1000)] = -1
    """`transformers`: the layer whose output is taken, 1 the first, or backwards: -1 the last with its final
    norm, -2 the one before, without the norm; what comes after it is not loaded."""
    precision: Annotated[Literal["bf16", "fp32"], FREE] = "bf16"
    """Number format that a frozen encoder computes in; its features are fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        path = f"{self.section_name}.path"
        require(
            (self.kind == "sentencepiece") != bool(self.path),
            path,
            self.path,
            "no path for 'sentencepiece', and a local one for the other kinds",
        )
        if self.kind == "transformers":
            require(self.layer != 0, f"{self.section_name}.layer", self.layer, "1 or more, or -1 or less")
        else:
            self._refuse("tokenizer", "transformers")
            self._refuse("layer", "transformers")
        is_file = self.kind == "open_clip" and not self.path.startswith(LOCAL_FOLDER)
        if not is_file:
            self._refuse("architecture", "open_clip with a weight file")
        else:
            require(
                bool(self.architecture),
                f"{self.section_name}.architecture",
                self.architecture,
                "the name that open_clip knows the weight file's architecture by, such as ViT-L-14",
            )
        if self.kind == "sentencepiece":
            self._refuse("precision", "frozen encoders")

    def _refuse(self, name: str, used_by: str) -> None:
        """Raise ValueError for a setting that would have no effect."""
        value, default = getattr(self, name), getattr(type(self), name)
        require(value == default, f"{self.section_name}.{name}", value, f"none: it is for {used_by} alone")


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section, name="text"):
    """How captions become features."""

    kind: Literal["sentencepiece", "open_clip"] = "sentencepiece"
    """`sentencepiece`: a tokenizer and a small encoder trained along; `open_clip`: a frozen text tower. For
    other or several encoders, see `encoders`."""
    encoders: tuple[TextEncoderConfig, ...] = ()
    """Encoders side by side, each {kind: ..., path: ..., max_tokens: ...}; several need
    model.text_projection. Empty: one, as `kind`, `max_tokens` and `open_clip_*` say."""
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
        if self.encoders:
            self._check_encoders()

    def _check_encoders(self) -> None:
        for name in ("kind", "max_tokens", "open_clip_name", "open_clip_weights"):
            value, default = getattr(self, name), getattr(type(self), name)
            require(
                value == default,
                f"text.{name}",
                value,
                f"its default {default!r} beside text.encoders, of which each has its own; take it out of "
                "the file, or set it to that",
            )
        trained = [number for number, one in enumerate(self.encoders) if one.kind == "sentencepiece"]
        if len(trained) > 1:
            raise ValueError(
                f"text.encoders.{trained[1]}.kind is 'sentencepiece' once more; expected at most one encoder "
                "that is trained along"
            )

    def plainest(self) -> "TextConfig":
        """The same encoders, a list of one as the settings for one alone where these can say it."""
        if len(self.encoders) != 1 or self.encoders[0].kind == "transformers":
            return self
        (encoder,) = self.encoders
        assert encoder.kind != "transformers"
        return replace(
            self,
            encoders=(),
            kind=encoder.kind,
            max_tokens=encoder.max_tokens,
            open_clip_name=encoder.architecture or self.open_clip_name,
            open_clip_weights=encoder.path,
        )

    def listed(self) -> tuple[TextEncoderConfig, ...]:
        """The encoders, that of the settings for one alone among them."""
        if self.encoders:
            return self.encoders
        if self.kind == "sentencepiece":
            return (TextEncoderConfig(kind="sentencepiece", max_tokens=self.max_tokens),)
        is_file = not self.open_clip_weights.startswith(LOCAL_FOLDER)
        return (
            TextEncoderConfig(
                kind="open_clip",
                path=self.open_clip_weights,
                architecture=self.open_clip_name if is_file else "",
                max_tokens=self.max_tokens,
                precision="fp32",
            ),
        )

    @property
    def trained(self) -> TextEncoderConfig | None:
        """The encoder that is trained along."""
        return next((encoder for encoder in self.listed() if encoder.kind == "sentencepiece"), None)

    @property
    def trained_stream(self) -> int:
        """The place of its stream among all; 0 without one."""
        kinds = [encoder.kind for encoder in self.listed()]
        return kinds.index("sentencepiece") if "sentencepiece" in kinds else 0
