"""Several data sets in one order, each read at its own pace and through epochs of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np

from diffmoe_scale.data.order.order import ShuffledOrder, permutation
from diffmoe_scale.recent import RecentlyUsed

CYCLE = 1 << 16
MIXTURE_STREAM = 2


@dataclass(frozen=True)
class _Turns:
    """Of each place in a cycle, whose turn it is and how many turns that data set had before in this cycle;
    `first` are those before it."""

    first: list[int]
    dataset: np.ndarray
    turn: np.ndarray


class MixedOrder:
    """Data sets by weight: of every `CYCLE` samples each has its share of turns, in an order that each cycle
    shuffles.

    So the data set of sample n, and which of its own samples it is, are pure functions of the seed and n, and
    found without counting from 0. The shards of data set d follow those of data set d - 1.
    """

    def __init__(
        self, counts: Sequence[Sequence[int]], weights: Sequence[int], *, seed: int, block: int
    ) -> None:
        """`counts[d]` are the samples in the shards of data set d, which gets `weights[d]` of their sum; one
        of weight 0 may have none."""
        self.seed = seed
        # A seed of its own for each, else two copies of a data set would be read in step.
        self.orders = [
            ShuffledOrder(sizes, seed=seed + number, block=block) for number, sizes in enumerate(counts)
        ]
        self.first_shard = [0, *accumulate(len(sizes) for sizes in counts)]
        self.weights = list(weights)
        self._cycles: RecentlyUsed[int, _Turns] = RecentlyUsed(2)

    def locate(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, CYCLE)
        turns = self._cycles.get(cycle, self._shuffle)
        dataset = int(turns.dataset[place])
        shard, row = self.orders[dataset].locate(turns.first[dataset] + int(turns.turn[place]))
        return self.first_shard[dataset] + shard, row

    def consumed(self, index: int) -> list[int]:
        """How many of the samples before number `index` are of each data set."""
        if index == 0:
            # A bucket without images has no turns to shuffle.
            return [0] * len(self.weights)
        cycle, place = divmod(index, CYCLE)
        turns = self._cycles.get(cycle, self._shuffle)
        here = np.bincount(turns.dataset[:place], minlength=len(self.weights))
        return [first + int(extra) for first, extra in zip(turns.first, here, strict=True)]

    def _shuffle(self, cycle: int) -> _Turns:
        first, end = (apportion(number * CYCLE, self.weights) for number in (cycle, cycle + 1))
        turns = [after - before for before, after in zip(first, end, strict=True)]
        dataset = np.repeat(np.arange(len(turns)), turns)[
            permutation(CYCLE, (self.seed, cycle, MIXTURE_STREAM, 0))
        ]
        turn = np.empty(CYCLE, dtype=np.int64)
        for number, count in enumerate(turns):
            turn[dataset == number] = np.arange(count)
        return _Turns(first=first, dataset=dataset, turn=turn)


def mix(
    counts: Sequence[Sequence[Sequence[int]]], weights: Sequence[float], *, seed: int, block: int
) -> tuple[list[MixedOrder], list[int]]:
    """The order of each bucket, and its share of all samples in whole numbers of one unit; `counts[b][d]` are
    the samples of bucket b in the shards of data set d. Without buckets there is one.

    Of data set d a bucket gets the weight of d times the share of d's samples that it has. Raises: ValueError
    if a weight gets no turn.
    """
    samples = [[sum(sizes) for sizes in by_dataset] for by_dataset in counts]
    totals = [sum(numbers) for numbers in zip(*samples, strict=True)]
    unit = math.lcm(*totals)
    turns = shares(weights)
    by_bucket = [
        [turn * number * (unit // total) for turn, number, total in zip(turns, numbers, totals, strict=True)]
        for numbers in samples
    ]
    orders = [
        MixedOrder(by_dataset, own, seed=seed, block=block)
        for by_dataset, own in zip(counts, by_bucket, strict=True)
    ]
    return orders, [sum(own) for own in by_bucket]


def apportion(number: int, weights: Sequence[int]) -> list[int]:
    """`number` turns divided by weight, by Jefferson's method: nobody has fewer of more turns, and all have
    what is due, rounded down.

    It gives each turn to whose (turns + 1) / weight is the least; up to what all are due, that is known
    without counting from 0.
    """
    turns = [number * weight // sum(weights) for weight in weights]
    weighted = [place for place, weight in enumerate(weights) if weight]
    for _ in range(number - sum(turns)):
        turns[min(weighted, key=lambda place: Fraction(turns[place] + 1, weights[place]))] += 1
    return turns


def shares(weights: Sequence[float]) -> list[int]:
    """`CYCLE` turns divided by weight, the largest remainders rounded up. Raises: ValueError if one gets
    none."""
    exact = [weight / sum(weights) * CYCLE for weight in weights]
    turns = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: turns[number] - exact[number])
    for number in by_remainder[: CYCLE - sum(turns)]:
        turns[number] += 1
    if 0 in turns:
        number = turns.index(0)
        raise ValueError(
            f"data.train.{number}.weight is {weights[number]}; expected at least 1/{CYCLE} of the sum of "
            f"the weights ({sum(weights):g})"
        )
    return turns
