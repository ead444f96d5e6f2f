"""Arguments of the benchmarks. Imports nothing slow, so that `--help` answers at once."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from diffmoe_scale.config.check import require

SAMPLE_TOKENS = 256
"""Tokens of a picture in the layer's benchmark."""
WIDTH_RATIOS = (4.0, 2.0, 1.0, 0.5, 0.25)
DataType = Literal["fp32", "bf16"]
Device = Literal["", "cpu", "cuda"]
"""The empty word: cuda if there is one."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one MoE layer and its input."""

    width: int
    num_experts: int
    num_tokens: int
    """Of one rank."""
    width_ratio: float = 4.0
    """Hidden width of an expert over `width`. The experts of a token are together as wide as the dense
    network, 4 times `width`."""

    @property
    def experts_per_token(self) -> int:
        """On average."""
        return round(4 / self.width_ratio)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`WIDTHxEXPERTSxTOKENS` or `WIDTHxEXPERTSxTOKENSxRATIO`. Raises: argparse.ArgumentTypeError if this
        cannot be measured."""
        sizes, ratio = text.split("x")[:3], text.split("x")[3:]
        try:
            width, num_experts, num_tokens = map(int, sizes)
            (width_ratio,) = map(float, ratio or ["4"])
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text}: expected WIDTHxEXPERTSxTOKENS, such as 384x16x8192, or xRATIO behind it, such as "
                "1024x64x8192x0.5"
            ) from error
        if (
            min(width, num_experts, num_tokens) < 1
            or num_tokens % num_experts
            or num_tokens < 2 * num_experts
            or (num_tokens > SAMPLE_TOKENS and num_tokens % SAMPLE_TOKENS)
            or width % 8
        ):
            raise argparse.ArgumentTypeError(
                f"{text}: expected a width that 8 divides, and tokens in multiples of the experts, at least "
                f"two an expert, and of {SAMPLE_TOKENS} (a sample) where there are more"
            )
        if width_ratio not in WIDTH_RATIOS or round(4 / width_ratio) > num_experts:
            raise argparse.ArgumentTypeError(
                f"{text}: expected an expert's width over WIDTH that is one of {WIDTH_RATIOS}, and as many "
                "experts as are 4 times WIDTH wide together"
            )
        return cls(width, num_experts, num_tokens, width_ratio)

    def __str__(self) -> str:
        ratio = "" if self.width_ratio == 4 else f"x{self.width_ratio:g}"
        return f"{self.width}x{self.num_experts}x{self.num_tokens}{ratio}"


USUAL_SHAPES = (LayerShape(384, 16, 8192), LayerShape(1024, 8, 4096))


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What bench_layer measures. Raises: ValueError that names the option, as all classes below do."""

    shapes: tuple[LayerShape, ...] = USUAL_SHAPES
    rounds: int = 10
    threads: int = 2
    """Of a process."""
    dtype: DataType = "fp32"
    device: Device = ""
    ranks: int = 1
    """Above 1: the selection in a pool over this many processes is measured instead."""

    def __post_init__(self) -> None:
        _require_counts(self, "rounds", "threads", "ranks")


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What bench_step measures."""

    width: int = 384
    depth: int = 4
    experts: int = 16
    every: int = 2
    """An MoE layer in every n-th block."""
    batch: int = 16
    latent_size: int = 32
    """Height and width."""
    rounds: int = 8
    threads: int = 2
    dtype: DataType = "fp32"
    device: Device = ""
    is_compiled: bool = False
    """Also the grouped layer's model under run.compile."""

    def __post_init__(self) -> None:
        _require_counts(
            self, "width", "depth", "experts", "every", "batch", "latent_size", "rounds", "threads"
        )


REFERENCE_EXPERTS = (8, 16, 64, 128)


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """What bench_reference measures against a checkout of the DiffMoE reference."""

    reference: Path
    experts: tuple[int, ...] = REFERENCE_EXPERTS
    """A layer and a model for each number."""
    width: int = 256
    tokens: int = 2048
    """Of a batch."""
    depth: int = 2
    """Of the step's model, with experts in every second block."""
    latent_size: int = 32
    """Height and width of its pictures; a token is 2 by 2."""
    rounds: int = 7
    threads: int = 2
    device: Device = ""

    def __post_init__(self) -> None:
        _require_counts(self, "width", "tokens", "rounds", "threads")
        require(self.depth >= 2, "--depth", self.depth, "at least 2, for one block with experts")
        is_even = self.latent_size >= 2 and self.latent_size % 2 == 0
        require(is_even, "--latent-size", self.latent_size, "an even number")
        picture = (self.latent_size // 2) ** 2
        fits = self.width % 64 == 0 and self.tokens % picture == 0
        require(fits, "--width and --tokens", (self.width, self.tokens), f"multiples of 64 and of {picture}")
        for count in self.experts:
            fits = count >= 1 and self.tokens % count == 0 and self.tokens >= 2 * count
            require(fits, "--experts", count, f"a divisor of --tokens {self.tokens}, at most half of it")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What bench_sampling draws."""

    width: int = 384
    depth: int = 4
    experts: int = 8
    every: tuple[int, ...] = (2, 1)
    """A model each, with an MoE layer in every n-th block."""
    batch: int = 16
    latent_size: int = 32
    """Height and width of the pictures; a token is 2 by 2."""
    steps: int = 4
    """Of a picture."""
    guidance: float = 1.0
    """Other than 1 doubles the calls of the network."""
    rounds: int = 7
    threads: int = 2
    device: Device = ""

    def __post_init__(self) -> None:
        _require_counts(
            self, "width", "depth", "experts", "batch", "latent_size", "steps", "rounds", "threads"
        )
        require(min(self.every) >= 1, "--every", self.every, "numbers of at least 1")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What bench_data reads."""

    pictures: str = ""
    """Shards: a path, glob or brace list; "" makes some."""
    features: str = ""
    """Shards of tools/cache_features.py; "" makes some."""
    image_size: int = 256
    """Width and height of decoded pictures."""
    samples: int = 1024
    """Of a round."""
    batch: int = 64
    rounds: int = 7

    def __post_init__(self) -> None:
        _require_counts(self, "image_size", "samples", "batch", "rounds")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What bench_checkpoint saves."""

    parameters: float = 300e6
    """Size of the model, met by its number of experts."""
    width: int = 512
    saves: int = 3
    """Of each kind."""
    steps: int = 2
    """Between saves."""
    threads: int = 2
    folder: Path | None = None
    """Where checkpoints are written and removed again; None is the machine's temporary folder."""

    def __post_init__(self) -> None:
        is_size = math.isfinite(self.parameters) and self.parameters >= 1
        require(is_size, "--parameters", self.parameters, "a finite number of at least 1")
        _require_counts(self, "width", "saves", "steps", "threads")


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """The data set of bench_resume."""

    shards: int = 200
    samples: int = 10_000
    """Of each shard."""
    shuffle_block: int = 64
    """data.shuffle_block"""
    folder: Path | None = None
    """Where to make the data set, and leave it; None is a temporary folder."""

    def __post_init__(self) -> None:
        _require_counts(self, "shards", "samples", "shuffle_block")


@dataclass(frozen=True, kw_only=True)
class MetricsOptions:
    """The features of bench_metrics."""

    pictures: int = 50_000
    reference: int = 10_000
    """Reference pictures."""
    width: int = 2048
    """Features of a picture."""
    batch: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        _require_counts(self, "width", "batch", "threads")
        for name in ("pictures", "reference"):
            require(getattr(self, name) >= 4, f"--{name}", getattr(self, name), "at least 4, for precision")


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """The model whose random weights bench_conversion converts."""

    config: Path
    folder: Path | None = None
    """Where they are written and removed again; None is the machine's temporary folder."""
    shard_gib: float = 5.0
    """Largest file of the target."""
    copy_gib: float = 8.0
    """How much of the source is copied at most, to know what the disk can do."""
    threads: int = 1
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_counts(self, "threads")
        for name in ("shard_gib", "copy_gib"):
            value = getattr(self, name)
            require(1e-6 <= value <= 2**20, f"--{name.replace('_', '-')}", value, "1e-6 to 2**20")


def _require_counts(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        require(value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
