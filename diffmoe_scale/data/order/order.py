"""The order of samples and their random numbers: pure functions of the seed and the sample's number."""

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from diffmoe_scale.recent import RecentlyUsed


class Order(Protocol):
    """Numbers 0, 1, 2, ... of a run's samples, epoch after epoch, to places in shards."""

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and row of a sample number."""


class FixedOrder:
    """Shard after shard, row after row."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.ends = list(accumulate(counts))

    def locate(self, index: int) -> tuple[int, int]:
        position = index % self.ends[-1]
        shard = bisect_right(self.ends, position)
        return shard, position - (self.ends[shard - 1] if shard else 0)


class BucketOrder:
    """Sample n of bucket b of B, as number n * B + b. Shuffled with one seed, all buckets go through the
    shards alike."""

    def __init__(
        self, orders: Sequence[Order], rows: Callable[[int], Sequence[np.ndarray]], *, shares: Sequence[int]
    ) -> None:
        """`orders[b]` gives shard and place among the shard's samples of bucket b, `rows(shard)[b]` their
        rows; of a run's samples it gets `shares[b]` of their sum."""
        self.orders = list(orders)
        self.rows = rows
        self.shares = list(shares)

    def locate(self, index: int) -> tuple[int, int]:
        number, bucket = divmod(index, len(self.orders))
        shard, place = self.orders[bucket].locate(number)
        return shard, int(self.rows(shard)[bucket][place])


@dataclass(frozen=True)
class _Epoch:
    """Shards in the order of one epoch and, for each block of them, where its samples begin."""

    shards: list[int]
    starts: list[int]


class ShuffledOrder:
    """Each epoch permutes the shards and shuffles the samples of every `block` neighbours. Any place is found
    in O(shards)."""

    def __init__(self, counts: Sequence[int], *, seed: int, block: int) -> None:
        self.counts = list(counts)
        self.total = sum(counts)
        self.seed = seed
        self.block = block
        self._epochs: RecentlyUsed[int, _Epoch] = RecentlyUsed(2)
        self._blocks: RecentlyUsed[tuple[int, int], tuple[np.ndarray, FixedOrder]] = RecentlyUsed(2)

    def locate(self, index: int) -> tuple[int, int]:
        epoch, position = divmod(index, self.total)
        plan = self._epochs.get(epoch, self._plan)
        block = bisect_right(plan.starts, position) - 1
        permutation, inside = self._blocks.get((epoch, block), self._shuffle)
        shard, row = inside.locate(int(permutation[position - plan.starts[block]]))
        return plan.shards[block * self.block + shard], row

    def _plan(self, epoch: int) -> _Epoch:
        shards = permutation(len(self.counts), (self.seed, epoch, 0, 0)).tolist()
        sizes = [
            sum(self.counts[shard] for shard in shards[first : first + self.block])
            for first in range(0, len(shards), self.block)
        ]
        return _Epoch(shards=shards, starts=[0, *accumulate(sizes[:-1])])

    def _shuffle(self, place: tuple[int, int]) -> tuple[np.ndarray, FixedOrder]:
        epoch, block = place
        shards = self._epochs.get(epoch, self._plan).shards[block * self.block : (block + 1) * self.block]
        counts = [self.counts[shard] for shard in shards]
        return permutation(sum(counts), (self.seed, epoch, 1, block)), FixedOrder(counts)


def permutation(length: int, stream: Sequence[int]) -> np.ndarray:
    """A shuffle of 0 to length - 1 (uint32), the same for the same numbers in `stream`."""
    # numpy guarantees the bits of a bit generator across versions, but not what Generator.permutation makes
    # of them.
    bits = np.random.Philox(np.random.SeedSequence([number % 2**64 for number in stream])).random_raw(length)
    return np.argsort(bits, kind="stable").astype(np.uint32)


class Draws(NamedTuple):
    """The random numbers of one sample, each uniform in [0, 1)."""

    dropout: float
    caption: float
    flip: float


def sample_draws(seed: int, index: int) -> Draws:
    """The same for a sample number on every rank. A hash, because seeding a generator costs ten times as
    much."""
    words = struct.unpack("<3Q", blake2b(struct.pack("<QQ", seed % 2**64, index), digest_size=24).digest())
    # 53 bits, so that the division is exact and never reaches 1.
    return Draws(*((word >> 11) / 2**53 for word in words))
