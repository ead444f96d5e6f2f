"""Batches of WebDataset shards. The state of reading is one integer: the samples that all ranks have consumed together."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.train import DataConfig
from diffmoe_scale.data.batch import Batch, collate
from diffmoe_scale.data.index import ShardCatalog, expand_patterns
from diffmoe_scale.data.order import FixedOrder, ShuffledOrder
from diffmoe_scale.data.source import SampleSource, ShardFiles
from diffmoe_scale.data.worker import follow_rank, start_worker_server

logger = logging.getLogger(__name__)

LOGGED_FAILURES = 10
JUDGED_SAMPLES = 200
CHECKED_SAMPLES = 64


def build_reader(config: DataConfig, patterns: Sequence[str], *, model: ModelConfig, seed: int) -> "Reader":
    """A reader of the shards that the patterns name; makes missing indexes.

    Raises: ValueError for patterns without a file, shards without a sample, samples without captions (or labels).
    """
    catalog = ShardCatalog(expand_patterns(patterns), index_folder=Path(config.index_folder) if config.index_folder else None)
    num_samples, num_lost = sum(catalog.counts), catalog.problems.total()
    if num_samples + num_lost >= JUDGED_SAMPLES and num_lost > config.max_bad_fraction * (num_samples + num_lost):
        raise ValueError(
            f"indexing the shards found {num_lost} problems ({dict(catalog.problems)}) beside {num_samples} good samples, "
            f"more than data.max_bad_fraction ({config.max_bad_fraction}); "
            "the log of the first start names them; repair the shards or raise the limit"
        )
    lost = f"; problems: {dict(catalog.problems)}" if catalog.problems else ""
    logger.info("%d samples in %d shards%s", sum(catalog.counts), len(catalog.paths), lost)
    reader = Reader(config, catalog, model=model, seed=seed)
    reader.check_conditions()
    return reader


class Reader:
    """Global batches of shards: window g of G samples is the same set of samples whoever shares it."""

    def __init__(self, config: DataConfig, catalog: ShardCatalog, *, model: ModelConfig, seed: int) -> None:
        self.config = config
        self.catalog = catalog
        self.num_samples = sum(catalog.counts)
        """Samples of an epoch."""
        self.read_samples = 0
        """Samples that this rank was given."""
        self.counts: Counter[str] = Counter()
        """Samples by what was wrong with them: `read`, `image`, `label` (these have weight 0) and `caption` (none there)."""
        order = ShuffledOrder(catalog.counts, seed=seed, block=config.shuffle_block)
        self.source = SampleSource(config=config, model=model, seed=seed, catalog=catalog, files=ShardFiles(catalog), order=order, is_augmented=True)
        self.fixed_source = replace(self.source, order=FixedOrder(catalog.counts), is_augmented=False)

    @property
    def bad_samples(self) -> int:
        """Samples of weight 0 so far."""
        return self.counts.total() - self.counts["caption"]

    def batches(self, *, start_sample: int, dp_rank: int, dp_size: int, global_batch: int, micro_batch: int) -> Iterator[Batch]:
        """Micro-batches of one rank without end, from the global sample number `start_sample` on.

        Micro-batch a of rank r in a window is chunk a * dp_size + r of `micro_batch` samples.

        Raises: ValueError if the window cannot be split so; RuntimeError when more samples fail than data.max_bad_fraction.
        """
        if global_batch % (dp_size * micro_batch) != 0:
            raise ValueError(
                f"run.global_batch is {global_batch}; expected a multiple of {dp_size} data-parallel ranks times run.micro_batch ({micro_batch})"
            )
        chunks = (range(first, first + micro_batch) for first in itertools.count(start_sample + dp_rank * micro_batch, dp_size * micro_batch))
        return self._judged(self._load(chunks))

    def validation_batches(self, *, limit: int, dp_rank: int, dp_size: int, micro_batch: int) -> Iterator[Batch]:
        """The first `limit` samples of the shards in a fixed order, split over the ranks; no dropout, no flip.

        Every rank gets the same number of full micro-batches; slots beyond the last sample repeat the first ones with weight 0.
        """
        count = min(limit, self.num_samples)
        rounds = math.ceil(count / (dp_size * micro_batch))
        for first in range(dp_rank * micro_batch, rounds * dp_size * micro_batch, dp_size * micro_batch):
            numbers = range(first, first + micro_batch)
            batch = collate([self.fixed_source.load(number % count) for number in numbers], image_size=self.source.model.image_size)
            is_counted_B = torch.tensor([number < count for number in numbers])
            yield replace(batch, weight_B=batch.weight_B * is_counted_B)

    def check_conditions(self) -> None:
        """Raises: ValueError if none of some samples spread over all shards has a caption (or label)."""
        model, count = self.source.model, min(CHECKED_SAMPLES, self.num_samples)
        samples = [self.fixed_source.order.locate(number * self.num_samples // count) for number in range(count)]
        found: Counter[str] = Counter()
        for shard, row in samples:
            members = self.catalog.index(shard).members(row)
            found.update(members.keys())
            if ("cls" in members) if model.conditioning == "class" else self.source.files.captions(shard, members):
                return
        expected = (
            ".cls (model.conditioning is 'class')"
            if model.conditioning == "class"
            else ".txt, or .json with \"caption\" (model.conditioning is 'text')"
        )
        raise ValueError(
            f"none of {count} samples that were looked at in {len(self.catalog.paths)} shards has a member {expected}; members found: {dict(found)}"
        )

    def _load(self, chunks: Iterable[range]) -> Iterator[Batch]:
        workers = self.config.workers
        if workers:
            start_worker_server()
        loader = DataLoader(
            _Chunks(self.source),
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            # Neither threads nor a CUDA context survive a plain fork.
            multiprocessing_context="forkserver" if workers else None,
            worker_init_fn=follow_rank,
            # Its own generator: the loader would draw a seed from the global one.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _judged(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, their failures counted, logged and limited. Here and not in `_Chunks`, which may run in other processes."""
        for batch in batches:
            self.read_samples += len(batch.keys)
            for failure in batch.failures:
                self._count(failure.kind, f"{failure.key}: {failure.reason}; its slot has weight 0")
            for key in batch.uncaptioned:
                self._count("caption", f"{key}: no caption; trained on the empty one")
            if self.read_samples >= JUDGED_SAMPLES and self.bad_samples > self.config.max_bad_fraction * self.read_samples:
                raise RuntimeError(
                    f"{self.bad_samples} of {self.read_samples} samples cannot be used ({dict(self.counts)}), "
                    f"more than data.max_bad_fraction ({self.config.max_bad_fraction}); the log names them; repair the shards or raise the limit"
                )
            yield batch

    def _count(self, kind: str, sentence: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= LOGGED_FAILURES:
            logger.warning("sample %s%s", sentence, "; more of this kind are only counted" if self.counts[kind] == LOGGED_FAILURES else "")


@dataclass(frozen=True)
class _Chunks(Dataset[Batch]):
    """The batch of a range of sample numbers."""

    source: SampleSource

    def __getitem__(self, numbers: range) -> Batch:
        return collate([self.source.load(number) for number in numbers], image_size=self.source.model.image_size)


def iterate_captions(reader: Reader, limit: int) -> Iterator[str]:
    """The captions of at most `limit` samples, spread evenly over all shards; no image is read."""
    files, count = reader.source.files, min(limit, reader.num_samples)
    for number in range(count):
        shard, row = reader.fixed_source.order.locate(number * reader.num_samples // count)
        yield from files.captions(shard, reader.catalog.index(shard).members(row))
