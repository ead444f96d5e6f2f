"""Settings of the data: shards, captions, aspect-ratio buckets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section, name="data.train.N", is_free=True):
    """One of several data sets that are mixed."""

    shards: Annotated[tuple[str, ...], PATH]
    """WebDataset tar shards, as in `data.train`."""
    weight: Annotated[float, Range(0, 1e12, excludes_low=True)]
    """Samples of this data set over those of all, times the sum of the weights."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, name="data", is_free=True):
    """Where samples come from and how they are read."""

    train: Annotated[tuple[str | DatasetConfig, ...], PATH] = ()
    """WebDataset tar shards: paths, globs, brace lists, URLs or 'pipe:COMMAND'; or data sets to mix, each
    {shards: [...], weight: 1}."""
    validation: Annotated[tuple[str, ...], PATH] = ()
    """Shards of the held-out samples; empty switches validation off."""
    shuffle_block: Annotated[int, Range(1, 10**9)] = 64
    """Shards that are shuffled together."""
    workers: Annotated[int, Range(0, 256)] = 0
    """Reading processes a rank; 0 reads in the training process."""
    index_folder: Annotated[str, PATH] = ""
    """Folder for the indexes of shards that lie in a read-only folder; empty keeps those in memory, made anew
    at each start."""
    cache_folder: Annotated[str, PATH] = ""
    """Folder on each machine for copies of shards that are URLs; may be emptied at any time, and must be when
    what a URL gives has changed."""
    cache_gib: Annotated[float, Range(0, 1e9, excludes_low=True)] = 100.0
    """Disk space of those copies; the ones unused for longest leave first. Holds at least two blocks of
    `shuffle_block` shards."""
    fetch_attempts: Annotated[int, Range(1, 100)] = 6
    """Attempts at copying a shard, 1, 2, 4, ... seconds apart, before its samples count as unusable."""
    stall_timeout_s: Annotated[float, Range(0, 86_400, excludes_low=True)] = 60.0
    """Seconds without a byte after which such a transfer is broken off."""
    prefetch: Annotated[int, Range(1, 1024)] = 2
    """Micro-batches that each reading process prepares in advance."""
    caption_weights: Annotated[Mapping[str, float], Range(0, 1e12)] = field(
        default_factory=lambda: {"txt": 1.0, "caption": 0.0}
    )
    """How often a caption is drawn from each source: `txt` is the member .txt, other names are fields of the
    .json; 0: where no other has one."""
    caption_dropout: Annotated[float, Range(0, 1, excludes_high=True)] = 0.1
    """Probability of training on the empty caption (or null class), for guidance."""
    horizontal_flip: bool = False
    """Mirror half of the images; wrong for captions with 'left' and 'right'."""
    background: Annotated[tuple[int, int, int], Range(0, 255)] = (255, 255, 255)
    """RGB that shows through transparent pixels."""
    max_bad_fraction: Annotated[float, Range(0, 1)] = 0.05
    """Share of a rank's samples that may be unusable (no picture, no label) before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        are_named = [isinstance(entry, DatasetConfig) for entry in self.train]
        require(
            all(are_named) or not any(are_named),
            "data.train",
            self.train,
            "patterns alone, or {shards, weight} entries alone",
        )
        require(
            bool(self.caption_weights),
            "data.caption_weights",
            dict(self.caption_weights),
            "at least one source, for example {txt: 1}",
        )


@dataclass(frozen=True, kw_only=True)
class BucketConfig(Section, name="buckets", is_free=True):
    """Images of many shapes, each batch of one."""

    enabled: bool = False
    """Give each image the aspect ratio of `aspects` that is nearest to its own; otherwise all are cut to
    squares."""
    aspects: Annotated[tuple[float, ...], Range(0, 100, excludes_low=True)] = (
        0.5,
        0.5625,
        0.6667,
        0.75,
        0.8,
        1.0,
        1.25,
        1.3333,
        1.5,
        1.7778,
        2.0,
    )
    """Width over height of each bucket, rising; an image beyond the ends is cut more."""
    step: Annotated[int, Range(1, 4096)] = 16
    """Sides are multiples of this many pixels; itself a multiple of model.patch_size times the factor of the
    autoencoder."""
    constant_tokens: bool = True
    """More images a batch where they are smaller than the square of model.image_size, so that steps have
    about equally many tokens."""
    resolutions: Annotated[tuple[tuple[int, int], ...], Range(1, 10**9)] = ()
    """Pairs of a first step (from 1) and a resolution: the pixels of its square are the most that an image
    has; empty is model.image_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.aspects)
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
