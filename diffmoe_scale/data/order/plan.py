"""Which samples each step takes: a position in the data is one integer a bucket."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.order.buckets import bucket_size
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Of a micro-batch: `count` images of one size."""

    size: Size
    count: int


@dataclass(frozen=True)
class Position:
    """Where a run stands: optimizer steps done, and the samples that all ranks together have taken of each
    bucket."""

    step: int
    consumed: tuple[int, ...]

    @property
    def samples(self) -> int:
        return sum(self.consumed)


@dataclass(frozen=True)
class Chunk:
    """One micro-batch of a rank: sample numbers and the size of their images."""

    numbers: Sequence[int]
    size: Size


@dataclass(frozen=True)
class BatchPlan:
    """What each step takes. Bucket b has the name `names[b]` and gets `shares[b]` of the samples, in any
    unit; `stages` are pairs of the first step (from 1) and the shape of a micro-batch of each bucket; a step
    has `micro_batches` of them, over all ranks."""

    names: tuple[str, ...]
    shares: tuple[int, ...]
    stages: tuple[tuple[int, tuple[Shape, ...]], ...]
    micro_batches: int

    def position(self, *, step: int, samples: int, by_bucket: Mapping[str, int]) -> Position:
        """That of a checkpoint after `step` steps. Raises: ValueError if written with other buckets."""
        if len(self.names) == 1 and not by_bucket:
            return Position(step, (samples,))
        if samples > 0 and by_bucket.keys() != set(self.names):
            raise ValueError(
                "the checkpoint counts samples of the aspect ratios "
                f"{', '.join(by_bucket) or 'none (one square size)'} but the run has "
                f"{', '.join(self.names)}; restore the settings of buckets, or choose another run.directory"
            )
        return Position(step, tuple(by_bucket.get(name, 0) for name in self.names))

    def by_bucket(self, position: Position) -> dict[str, int]:
        """What a checkpoint keeps of a position beside its step and samples."""
        return dict(zip(self.names, position.consumed, strict=True)) if len(self.names) > 1 else {}

    def shapes(self, step: int) -> tuple[Shape, ...]:
        """Of each bucket's micro-batches in a step (from 1)."""
        return next(shapes for first, shapes in reversed(self.stages) if first <= step)

    def next_bucket(self, position: Position) -> int:
        """Stride scheduling (Waldspurger 1995): the bucket whose next batch has its middle earliest in the
        epoch.

        Exact, in whole numbers: buckets stay within one batch of the same place in the epoch.
        """
        shapes = self.shapes(position.step + 1)
        filled = [bucket for bucket, share in enumerate(self.shares) if share]
        return min(
            filled,
            key=lambda bucket: Fraction(
                2 * position.consumed[bucket] + self.micro_batches * shapes[bucket].count,
                2 * self.shares[bucket],
            ),
        )

    def advance(self, position: Position) -> Position:
        """The position one step later."""
        bucket = self.next_bucket(position)
        consumed = list(position.consumed)
        consumed[bucket] += self.micro_batches * self.shapes(position.step + 1)[bucket].count
        return Position(position.step + 1, tuple(consumed))

    def chunks(self, position: Position, *, dp_rank: int, dp_size: int) -> Iterator[Chunk]:
        """The micro-batches of a rank from a position on, without end: micro-batch a of rank r is a step's
        chunk a * dp_size + r.

        Sample n of bucket b has the number n * B + b: unique in the run, and n itself where there is one
        bucket.
        """
        while True:
            bucket = self.next_bucket(position)
            shape = self.shapes(position.step + 1)[bucket]
            for place in range(dp_rank, self.micro_batches, dp_size):
                first = position.consumed[bucket] + place * shape.count
                numbers = range(
                    first * len(self.names) + bucket,
                    (first + shape.count) * len(self.names) + bucket,
                    len(self.names),
                )
                yield Chunk(numbers, shape.size)
            position = self.advance(position)


def build_plan(
    config: BucketConfig, shares: Sequence[int], *, image_size: int, global_batch: int, micro_batch: int
) -> BatchPlan:
    """The plan of a run; `shares` are what each bucket gets of the samples, of one data set how many it has;
    one where buckets are off.

    A micro-batch has as many images of a bucket as give at most the pixels of `micro_batch` squares of
    `image_size`.

    Raises: ValueError if `global_batch` is no multiple of `micro_batch`.
    """
    require(
        global_batch % micro_batch == 0,
        "run.global_batch",
        global_batch,
        f"a multiple of run.micro_batch ({micro_batch})",
    )
    if not config.enabled:
        shape = Shape(Size(image_size, image_size), micro_batch)
        return BatchPlan(
            names=("1",),
            shares=tuple(shares),
            stages=((1, (shape,)),),
            micro_batches=global_batch // micro_batch,
        )

    def shape_of(aspect: float, resolution: int) -> Shape:
        size = bucket_size(aspect, resolution=resolution, step=config.step)
        return Shape(
            size,
            micro_batch * image_size**2 // (size.height * size.width)
            if config.constant_tokens
            else micro_batch,
        )

    stages = tuple(
        (first, tuple(shape_of(aspect, resolution) for aspect in config.aspects))
        for first, resolution in config.resolutions or ((1, image_size),)
    )
    return BatchPlan(
        names=tuple(f"{aspect:g}" for aspect in config.aspects),
        shares=tuple(shares),
        stages=stages,
        micro_batches=global_batch // micro_batch,
    )


def fill_rate(plan: BatchPlan, step: int, *, budget: int) -> float:
    """Mean pixels of a micro-batch as of a step, over an epoch's steps, as a share of `budget`. None of them
    are padding."""
    shapes = plan.shapes(step)
    pixels = sum(
        share * shape.size.height * shape.size.width for share, shape in zip(plan.shares, shapes, strict=True)
    )
    # As fractions: shares may be beyond what a float holds.
    return float(
        pixels
        / sum(Fraction(share, shape.count) for share, shape in zip(plan.shares, shapes, strict=True))
        / budget
    )


def describe_plan(
    plan: BatchPlan, counts: Sequence[int], *, budget: int, global_batch: int, edge: int
) -> None:
    """Log the images and the batch of each bucket, for each resolution that the plan goes through."""
    for first, shapes in plan.stages:
        for name, count, shape in zip(plan.names, counts, shapes, strict=True):
            size, batch = shape.size, shape.count * plan.micro_batches
            logger.info(
                "from step %d, aspect %s: %s of %d x %d, %d a step",
                first,
                name,
                counted(count, "image"),
                size.width,
                size.height,
                batch,
            )
            if 0 < count < batch:
                logger.warning(
                    "aspect %s has %s, fewer than its batch of %d: they repeat in it; "
                    "leave it out of buckets.aspects",
                    name,
                    counted(count, "image"),
                    batch,
                )
        logger.info(
            "from step %d: steps use %.1f %% of the tokens of %d squares of %d, no padding",
            first,
            100 * fill_rate(plan, first, budget=budget),
            global_batch,
            edge,
        )
