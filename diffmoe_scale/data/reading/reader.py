"""Batches of WebDataset shards. The state of reading is one integer a bucket: the samples that all ranks have
consumed together."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.source import FeatureSet
from diffmoe_scale.data.order.buckets import full_sizes
from diffmoe_scale.data.order.mixture import MixedOrder
from diffmoe_scale.data.order.order import BucketOrder, FixedOrder, Order
from diffmoe_scale.data.order.plan import BatchPlan, Chunk, Position, build_plan, describe_plan
from diffmoe_scale.data.order.size import ImageBuckets
from diffmoe_scale.data.reading.batch import Batch, Note, collate
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.judge import Judge
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.source import SampleSource
from diffmoe_scale.data.reading.worker import follow_rank, start_worker_server
from diffmoe_scale.data.shards.catalog import ShardCatalog

logger = logging.getLogger(__name__)


# A look at some samples must not fetch a data set.
LOOKED_AT_REMOTE_SHARDS = 4


class Reader:
    """Global batches of shards: window g of G samples is the same set of samples for any number of ranks."""

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
        reads_text: bool = False,
    ) -> None:
        """`images` are the buckets' where they are on, and `order` goes by them; `features` made the shards
        that hold no pictures, and with `reads_text` captions are read beside them."""
        self.config = config
        self.order = order
        self.buckets = buckets
        self.images = images
        self.catalog = catalog
        self.num_samples = sum(catalog.counts)
        """Samples of an epoch."""
        self.judge = Judge(config)
        self.sizes = full_sizes(buckets, model.image_size)
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
            reads_text=reads_text,
        )
        self.fixed_source = replace(self.source, order=FixedOrder(catalog.counts), is_augmented=False)

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
            self.judge.count_note(Note("retry", text))

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
        describe_plan(plan, counts, budget=micro_batch * edge**2, global_batch=global_batch, edge=edge)
        self.images.describe()
        return plan

    def batches(self, plan: BatchPlan, start: Position, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        """Micro-batches of one rank without end, from a position on.

        Raises: ValueError if a step cannot be split so; RuntimeError when more samples fail than
        data.max_bad_fraction.
        """
        if plan.micro_batches % dp_size != 0:
            raise ValueError(
                f"run.global_batch is {plan.micro_batches} times run.micro_batch; expected a multiple of "
                f"{dp_size}, the data-parallel ranks"
            )
        return self.judge.watch(self._load(plan.chunks(start, dp_rank=dp_rank, dp_size=dp_size)))

    def validation_batches(
        self, *, limit: int, dp_rank: int, dp_size: int, micro_batch: int
    ) -> Iterator[Batch]:
        """The first `limit` samples of the shards in a fixed order, size by size, split over the ranks; no
        dropout, no flip.

        Every rank gets the same number of full micro-batches; rows beyond the last sample of a size repeat
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
