"""Settings of the data: shards, captions, aspect-ratio buckets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One of several data sets that are mixed."""

    shards: tuple[str, ...]
    """WebDataset tar shards, as in `data.train`."""
    weight: float
    """Samples of this data set over those of all, times the sum of the weights."""

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, "weight (of an entry of data.train)", self.weight, "above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are read."""

    train: tuple[str | DatasetConfig, ...] = ()
    """WebDataset tar shards: paths, globs, brace lists, URLs or 'pipe:COMMAND'; or data sets to mix, each
    {shards: [...], weight: 1}."""
    validation: tuple[str, ...] = ()
    """Shards of the held-out samples; empty switches validation off."""
    shuffle_block: int = 64
    """Shards that are shuffled together."""
    workers: int = 0
    """Reading processes a rank; 0 reads in the training process."""
    index_folder: str = ""
    """Folder for the indexes of shards that lie in a read-only folder; empty keeps those in memory, made anew
    at each start."""
    cache_folder: str = ""
    """Folder on each machine for copies of shards that are URLs; may be emptied at any time, and must be when
    what a URL gives has changed."""
    cache_gib: float = 100.0
    """Disk space of those copies; the ones unused for longest leave first. Holds at least two blocks of
    `shuffle_block` shards."""
    fetch_attempts: int = 6
    """Attempts at copying a shard, 1, 2, 4, ... seconds apart, before its samples count as unusable."""
    stall_timeout_s: float = 60.0
    """Seconds without a byte after which such a transfer is broken off."""
    prefetch: int = 2
    """Micro-batches that each reading process prepares in advance."""
    caption_weights: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0, "caption": 0.0})
    """How often a caption is drawn from each source: `txt` is the member .txt, other names are fields of the
    .json; 0: where no other has one."""
    caption_dropout: float = 0.1
    """Probability of training on the empty caption (or null class), for guidance."""
    horizontal_flip: bool = False
    """Mirror half of the images; wrong for captions with 'left' and 'right'."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB that shows through transparent pixels."""
    max_bad_fraction: float = 0.05
    """Share of a rank's samples that may be unusable (no picture, no label) before the run stops."""

    def __post_init__(self) -> None:
        require(self.shuffle_block >= 1, "data.shuffle_block", self.shuffle_block, "at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")
        require(self.cache_gib > 0, "data.cache_gib", self.cache_gib, "above 0")
        require(self.fetch_attempts >= 1, "data.fetch_attempts", self.fetch_attempts, "at least 1")
        require(self.stall_timeout_s > 0, "data.stall_timeout_s", self.stall_timeout_s, "above 0")
        are_named = [isinstance(entry, DatasetConfig) for entry in self.train]
        require(
            all(are_named) or not any(are_named),
            "data.train",
            self.train,
            "patterns alone, or {shards, weight} entries alone",
        )
        weights = self.caption_weights.values()
        require(
            bool(weights) and all(0 <= weight < math.inf for weight in weights),
            "data.caption_weights",
            dict(self.caption_weights),
            "sources with weights of 0 or more",
        )
        require(0 <= self.caption_dropout < 1, "data.caption_dropout", self.caption_dropout, "in [0, 1)")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        require(
            all(0 <= value <= 255 for value in self.background),
            "data.background",
            self.background,
            "three values in 0..255",
        )


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Images of many shapes, each batch of one."""

    enabled: bool = False
    """Give each image the aspect ratio of `aspects` that is nearest to its own; otherwise all are cut to
    squares."""
    aspects: tuple[float, ...] = (0.5, 0.5625, 0.6667, 0.75, 0.8, 1.0, 1.25, 1.3333, 1.5, 1.7778, 2.0)
    """Width over height of each bucket, rising; an image beyond the ends is cut more."""
    step: int = 16
    """Sides are multiples of this many pixels; itself a multiple of model.patch_size times the factor of the
    autoencoder."""
    constant_tokens: bool = True
    """More images a batch where they are smaller than the square of model.image_size, so that steps have
    about equally many tokens."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Pairs of a first step (from 1) and a resolution: the pixels of its square are the most that an image
    has; empty is model.image_size."""

    def __post_init__(self) -> None:
        require(
            bool(self.aspects)
            and self.aspects[0] > 0
            and all(low < high for low, high in zip(self.aspects, self.aspects[1:], strict=False)),
            "buckets.aspects",
            self.aspects,
            "rising numbers above 0, width over height, for example [0.75, 1.0, 1.3333]",
        )
        require(
            len({f"{aspect:g}" for aspect in self.aspects}) == len(self.aspects) <= 255,
            "buckets.aspects",
            self.aspects,
            "at most 255 that differ",
        )
        require(self.step >= 1, "buckets.step", self.step, "at least 1")
        firsts = [first for first, _ in self.resolutions]
        require(
            not firsts or (firsts[0] == 1 and firsts == sorted(set(firsts))),
            "buckets.resolutions",
            self.resolutions,
            "first steps that rise from 1",
        )
        require(
            self.enabled or not self.resolutions,
            "buckets.resolutions",
            self.resolutions,
            "empty unless buckets.enabled is set",
        )
