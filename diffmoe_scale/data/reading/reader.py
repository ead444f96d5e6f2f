"""Batches of WebDataset shards. The state of reading is one integer a bucket: the samples that all ranks have
consumed together."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from diffmoe_scale.config.check import RunError, require
from diffmoe_scale.config.data import BucketConfig, DataConfig, DatasetConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.source import (
    FeatureSet,
    check_shapes,
    find_feature_set,
)
from diffmoe_scale.data.order.buckets import BatchPlan, Chunk, Position, bucket_size, build_plan, fill_rate
from diffmoe_scale.data.order.mixture import MixedOrder, mix
from diffmoe_scale.data.order.order import BucketOrder, FixedOrder, Order, ShuffledOrder
from diffmoe_scale.data.order.size import ImageBuckets, find_sizes
from diffmoe_scale.data.reading.batch import FAILURES, NOTES, Batch, Note, collate
from diffmoe_scale.data.reading.conditions import CHECKED_SAMPLES, check_conditions
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.source import SampleSource, ShardFiles
from diffmoe_scale.data.reading.worker import follow_rank, start_worker_server
from diffmoe_scale.data.shards.index import ShardCatalog, expand_patterns
from diffmoe_scale.data.shards.remote import RemoteShards
from diffmoe_scale.unicode import TEXT_NOTES

logger = logging.getLogger(__name__)

LOGGED_FAILURES = 10
# A note costs no sample: one line of each kind says that there are some.
LOGGED_NOTES = 1
JUDGED_SAMPLES = 200
# A look at some samples must not fetch a data set.
LOOKED_AT_REMOTE_SHARDS = 4
WARNED_OF = ("long_caption", "retry", *TEXT_NOTES)


def build_reader(
    config: DataConfig,
    patterns: Sequence[str | DatasetConfig],
    *,
    model: ModelConfig,
    seed: int,
    buckets: BucketConfig | None = None,
) -> "Reader":
    """A reader of the shards that the patterns name, or of data sets by weight; makes missing indexes.
    Without `buckets` all images are cut to squares.

    Raises: ValueError for patterns without a file, shards without a sample, samples without captions (or
    labels), features of images of other sizes; OSError for a URL that cannot be read and has no index (or
    sizes, with buckets).
    """
    remote = None
    if config.cache_folder:
        limit_bytes = int(config.cache_gib * 2**30)
        remote = RemoteShards(
            Path(config.cache_folder),
            limit_bytes=limit_bytes,
            attempts=config.fetch_attempts,
            stall_timeout_s=config.stall_timeout_s,
        )
    datasets = [entry for entry in patterns if isinstance(entry, DatasetConfig)]
    shard_groups = [entry.shards for entry in datasets] or [
        tuple(entry for entry in patterns if isinstance(entry, str))
    ]
    groups = [expand_patterns(group, remote) for group in shard_groups]
    paths = [path for group in groups for path in group]
    buckets = buckets or BucketConfig()
    features = find_feature_set(paths, remote)
    if features is not None:
        check_shapes(features.source, image_size=model.image_size, buckets=buckets)
    index_folder = Path(config.index_folder) if config.index_folder else None
    on_fetch = partial(find_sizes, has_features=features is not None) if buckets.enabled else None
    catalog = ShardCatalog(paths, index_folder=index_folder, remote=remote, on_fetch=on_fetch)
    _check_cache(config, catalog, [len(group) for group in groups])
    num_samples, num_lost = sum(catalog.counts), catalog.problems.total()
    if num_samples + num_lost >= JUDGED_SAMPLES and num_lost > config.max_bad_fraction * (
        num_samples + num_lost
    ):
        raise ValueError(
            f"indexing the shards found {num_lost} problems ({dict(catalog.problems)}) beside {num_samples} good samples, "
            f"more than data.max_bad_fraction ({config.max_bad_fraction}); "
            "the log of the first start names them; repair the shards or raise the limit"
        )
    lost = f"; problems: {dict(catalog.problems)}" if catalog.problems else ""
    logger.info("%d samples in %d shards%s", sum(catalog.counts), len(catalog.paths), lost)
    images = None
    if buckets.enabled:
        ratios = [size.width / size.height for size in _full_sizes(buckets, model.image_size)]
        images = ImageBuckets(catalog, buckets.aspects, ratios=ratios, has_features=features is not None)
    counts_by_bucket = [catalog.counts] if images is None else images.counts
    orders: Sequence[Order]
    if datasets:
        for number, (entry, counts) in enumerate(zip(datasets, _split(catalog.counts, groups), strict=True)):
            logger.info(
                "data set %d: %d samples an epoch, weight %g, %s",
                number,
                sum(counts),
                entry.weight,
                ", ".join(entry.shards),
            )
            require(sum(counts) > 0, f"data.train.{number}.shards", entry.shards, "shards with samples")
        split = [_split(counts, groups) for counts in counts_by_bucket]
        orders, totals = mix(
            split, [entry.weight for entry in datasets], seed=seed, block=config.shuffle_block
        )
    else:
        orders = [ShuffledOrder(counts, seed=seed, block=config.shuffle_block) for counts in counts_by_bucket]
        totals = [sum(counts) for counts in counts_by_bucket]
    order = orders[0] if images is None else BucketOrder(orders, images.rows, shares=totals)
    reader = Reader(
        config,
        catalog,
        model=model,
        seed=seed,
        order=order,
        buckets=buckets,
        images=images,
        features=features,
    )
    check_conditions(reader.source, reader.places(CHECKED_SAMPLES))
    reader.count_retries()
    return reader


def _split(counts: Sequence[int], groups: Sequence[Sequence[Path]]) -> list[Sequence[int]]:
    ends = list(itertools.accumulate(map(len, groups)))
    return [counts[end - len(group) : end] for end, group in zip(ends, groups, strict=True)]


def _check_cache(config: DataConfig, catalog: ShardCatalog, group_sizes: Sequence[int]) -> None:
    """Raises: ValueError if the copies of shards that are read together exceed the cache: each sample would
    fetch a shard anew."""
    sizes = sorted(
        (size for shard, size in enumerate(catalog.sizes) if catalog.is_remote(shard)), reverse=True
    )
    # Two: at the end of a block, shards of the next are opened while others still read this one.
    together = 2 * sum(min(config.shuffle_block, group) for group in group_sizes)
    needed_gib = sum(sizes[:together]) / 2**30
    if needed_gib > config.cache_gib:
        raise ValueError(
            f"data.cache_gib is {config.cache_gib:g}, but two blocks of data.shuffle_block ({config.shuffle_block}) remote shards take "
            f"{needed_gib:.3g} GiB; raise data.cache_gib or lower data.shuffle_block"
        )


def _full_sizes(buckets: BucketConfig, image_size: int) -> list[Size]:
    """Of the images of each bucket at full resolution; of all images without buckets."""
    if not buckets.enabled:
        return [Size(image_size, image_size)]
    return [bucket_size(aspect, resolution=image_size, step=buckets.step) for aspect in buckets.aspects]


class Reader:
    """Global batches of shards: window g of G samples is the same set of samples whoever shares it."""

    def __init__(
        self,
        config: DataConfig,
        catalog: ShardCatalog,
        *,
        model: ModelConfig,
        seed: int,
        order: Order,
        buckets: BucketConfig,
        images: ImageBuckets | None,
        features: FeatureSet | None,
    ) -> None:
        """`images` are the buckets' where they are on, and `order` goes by them; `features` made the shards
        that hold no pictures."""
        self.config = config
        self.order = order
        self.buckets = buckets
        self.images = images
        self.catalog = catalog
        self.num_samples = sum(catalog.counts)
        """Samples of an epoch."""
        self.read_samples = 0
        """Samples that this rank was given."""
        self.counts: Counter[str] = Counter()
        """Samples by what was wrong with them (FAILURES, these have weight 0) or was dealt with (NOTES)."""
        self.sizes = _full_sizes(buckets, model.image_size)
        """Of the images of each bucket at full resolution."""
        self._edge = model.image_size
        files = ShardFiles(catalog)
        self.source = SampleSource(
            config=config,
            model=model,
            seed=seed,
            catalog=catalog,
            files=files,
            order=order,
            is_augmented=True,
            features=features,
        )
        self.fixed_source = replace(self.source, order=FixedOrder(catalog.counts), is_augmented=False)

    @property
    def bad_samples(self) -> int:
        """Samples of weight 0 so far."""
        return sum(self.counts[kind] for kind in FAILURES)

    def dataset_counts(self, position: Position) -> Mapping[str, float]:
        """How many of the samples of a run before a position came from each of several data sets."""
        orders = self.order.orders if isinstance(self.order, BucketOrder) else [self.order]
        pairs = zip(orders, position.consumed, strict=True)
        by_bucket = [order.consumed(samples) for order, samples in pairs if isinstance(order, MixedOrder)]
        return {
            f"data/samples/{number}": float(sum(counts))
            for number, counts in enumerate(zip(*by_bucket, strict=True))
        }

    def index_problems(self) -> Mapping[str, float]:
        """What indexing lost, by kind."""
        return {
            f"data/lost/{kind.replace(' ', '_')}": float(count)
            for kind, count in sorted(self.catalog.problems.items())
        }

    def count_retries(self) -> None:
        """Count and log what this process tried again so far; before reading processes get copies of the
        list."""
        for text in self.source.take_retries():
            self._count("retry", f"{NOTES['retry']}: {text}")

    def places(self, limit: int) -> list[tuple[int, int]]:
        """Shard and row of at most `limit` samples, spread evenly over all shards, or over a few of those
        that would have to be fetched."""
        counts = self.catalog.counts
        filled = [shard for shard, count in enumerate(counts) if count]
        if any(self.catalog.is_remote(shard) for shard in filled):
            number = min(LOOKED_AT_REMOTE_SHARDS, len(filled))
            filled = [filled[k * len(filled) // number] for k in range(number)]
        order, total = FixedOrder([counts[shard] for shard in filled]), sum(counts[shard] for shard in filled)
        found = (order.locate(k * total // min(limit, total)) for k in range(min(limit, total)))
        return [(filled[place], row) for place, row in found]

    def plan(self, *, global_batch: int, micro_batch: int) -> BatchPlan:
        """What each step of a run takes: `global_batch` squares in chunks of `micro_batch`, or as many tokens
        in other shapes."""
        edge = self._edge
        if not isinstance(self.order, BucketOrder):
            return build_plan(
                self.buckets,
                [self.num_samples],
                image_size=edge,
                global_batch=global_batch,
                micro_batch=micro_batch,
            )
        assert self.images is not None
        counts = [sum(counts) for counts in self.images.counts]
        plan = build_plan(
            self.buckets,
            self.order.shares,
            image_size=edge,
            global_batch=global_batch,
            micro_batch=micro_batch,
        )
        for first, shapes in plan.stages:
            for name, count, shape in zip(plan.names, counts, shapes, strict=True):
                size, batch = shape.size, shape.count * plan.micro_batches
                logger.info(
                    "from step %d, aspect %s: %d images of %d x %d, %d a step",
                    first,
                    name,
                    count,
                    size.width,
                    size.height,
                    batch,
                )
                if 0 < count < batch:
                    logger.warning(
                        "aspect %s has %d images, fewer than its batch of %d: they repeat in it; leave it out of buckets.aspects",
                        name,
                        count,
                        batch,
                    )
            filled = 100 * fill_rate(plan, first, budget=micro_batch * edge**2)
            logger.info(
                "from step %d: steps use %.1f %% of the tokens of %d squares of %d, no padding",
                first,
                filled,
                global_batch,
                edge,
            )
        logger.info(
            "buckets cut off %.1f %% of the pixels; squares would %.1f %%",
            100 * self.images.cropped,
            100 * self.images.cropped_to_square,
        )
        return plan

    def batches(self, plan: BatchPlan, start: Position, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        """Micro-batches of one rank without end, from a position on.

        Raises: ValueError if a step cannot be split so; RuntimeError when more samples fail than
        data.max_bad_fraction.
        """
        if plan.micro_batches % dp_size != 0:
            raise ValueError(
                f"run.global_batch is {plan.micro_batches} times run.micro_batch; expected a multiple of {dp_size}, the data-parallel ranks"
            )
        return self._judged(self._load(plan.chunks(start, dp_rank=dp_rank, dp_size=dp_size)))

    def validation_batches(
        self, *, limit: int, dp_rank: int, dp_size: int, micro_batch: int
    ) -> Iterator[Batch]:
        """The first `limit` samples of the shards in a fixed order, size by size, split over the ranks; no
        dropout, no flip.

        Every rank gets the same number of full micro-batches; slots beyond the last sample of a size repeat
        its first ones with weight 0.
        """
        for size, numbers in self.fixed_groups(range(min(limit, self.num_samples))).items():
            rounds = math.ceil(len(numbers) / (dp_size * micro_batch))
            for first in range(dp_rank * micro_batch, rounds * dp_size * micro_batch, dp_size * micro_batch):
                places = range(first, first + micro_batch)
                samples = [self.fixed_source.load(numbers[place % len(numbers)], size) for place in places]
                batch = collate(samples, size=size, features=self.source.features)
                is_counted_B = torch.tensor([place < len(numbers) for place in places])
                yield replace(batch, weight_B=batch.weight_B * is_counted_B)

    def fixed_groups(self, numbers: Iterable[int]) -> Mapping[Size, Sequence[int]]:
        """The samples of these numbers in the fixed order, by the size of their images at full resolution."""
        groups: dict[Size, list[int]] = {}
        for number in numbers:
            groups.setdefault(self.image_size(*self.fixed_source.order.locate(number)), []).append(number)
        return groups

    def image_size(self, shard: int, row: int) -> Size:
        """Of a sample's image at full resolution."""
        return self.sizes[0 if self.images is None else self.images.bucket(shard, row)]

    def _load(self, chunks: Iterable[Chunk]) -> Iterator[Batch]:
        workers = self.config.workers
        if workers:
            start_worker_server()
        loader = DataLoader(
            _Chunks(self.source),
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            # Neither threads nor a CUDA context survive a plain fork.
            multiprocessing_context="forkserver" if workers else None,
            worker_init_fn=follow_rank,
            # Its own generator: the loader would draw a seed from the global one.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _judged(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, their failures counted, logged and limited. Here and not in `_Chunks`, which may
        run in other processes."""
        for batch in batches:
            self.read_samples += len(batch.keys)
            for failure in batch.failures:
                self._count(failure.kind, f"sample {failure.key}: {failure.reason}; its slot has weight 0")
            for key in batch.uncaptioned:
                self._count("caption", f"sample {key}: no caption; trained on the empty one")
            for note in batch.notes:
                self._count(
                    note.kind,
                    f"{NOTES[note.kind]}: {note.text}",
                    level=logging.WARNING if note.kind in WARNED_OF else logging.INFO,
                )
            if (
                self.read_samples >= JUDGED_SAMPLES
                and self.bad_samples > self.config.max_bad_fraction * self.read_samples
            ):
                raise RunError(
                    f"{self.bad_samples} of {self.read_samples} samples cannot be used ({dict(self.counts)}), "
                    f"more than data.max_bad_fraction ({self.config.max_bad_fraction}); the log names them; repair the shards or raise the limit"
                )
            yield batch

    def _count(self, kind: str, sentence: str, level: int = logging.WARNING) -> None:
        self.counts[kind] += 1
        limit = LOGGED_NOTES if kind in NOTES and kind != "retry" else LOGGED_FAILURES
        if self.counts[kind] <= limit:
            logger.log(
                level,
                "%s%s",
                sentence,
                "; more of this kind are only counted" if self.counts[kind] == limit else "",
            )


@dataclass(frozen=True)
class _Chunks(Dataset[Batch]):
    """The batch of sample numbers in a size."""

    source: SampleSource

    def __getitem__(self, chunk: Chunk) -> Batch:
        source = self.source
        batch = collate(
            [source.load(number, chunk.size) for number in chunk.numbers],
            size=chunk.size,
            features=source.features,
        )
        return replace(batch, notes=batch.notes + [Note("retry", text) for text in source.take_retries()])


def iterate_captions(reader: Reader, limit: int) -> Iterator[str]:
    """The captions of at most `limit` samples (Reader.places); no image is read."""
    for shard, row in reader.places(limit):
        members = reader.catalog.index(shard).members(row)
        yield from (
            text for text, _ in reader.source.files.captions(shard, members, reader.config.caption_weights)
        )
