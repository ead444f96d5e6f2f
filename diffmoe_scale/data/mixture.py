"""Several data sets in one order, each read at its own pace and through epochs of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from diffmoe_scale.data.order import ShuffledOrder, permutation
from diffmoe_scale.data.recent import RecentlyUsed

CYCLE = 1 << 16
MIXTURE_STREAM = 2


@dataclass(frozen=True)
class _Turns:
    """Of each place in a cycle, whose turn it is and how many turns that data set had before in this cycle."""

    dataset: np.ndarray
    turn: np.ndarray


class MixedOrder:
    """Data sets by weight: of every `CYCLE` samples each has a fixed number of turns, in an order that each cycle shuffles.

    So the data set of sample n, and which of its own samples it is, are pure functions of the seed and n, and found without
    counting from 0. The shards of data set d follow those of data set d - 1.
    """

    def __init__(self, counts: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int, block: int) -> None:
        """`counts[d]` are the samples in the shards of data set d. Raises: ValueError if a weight is too small to get a turn."""
        self.seed = seed
        # A seed of its own for each, else two copies of a data set would be read in step.
        self.orders = [ShuffledOrder(sizes, seed=seed + number, block=block) for number, sizes in enumerate(counts)]
        self.first_shard = [0, *accumulate(len(sizes) for sizes in counts)]
        self.turns = shares(weights)
        self._cycles: RecentlyUsed[int, _Turns] = RecentlyUsed(2)

    def locate(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, CYCLE)
        turns = self._cycles.get(cycle, self._shuffle)
        dataset = int(turns.dataset[place])
        shard, row = self.orders[dataset].locate(cycle * self.turns[dataset] + int(turns.turn[place]))
        return self.first_shard[dataset] + shard, row

    def consumed(self, index: int) -> list[int]:
        """How many of the samples before number `index` are of each data set."""
        cycle, place = divmod(index, CYCLE)
        here = np.bincount(self._cycles.get(cycle, self._shuffle).dataset[:place], minlength=len(self.turns))
        return [cycle * turns + int(extra) for turns, extra in zip(self.turns, here, strict=True)]

    def _shuffle(self, cycle: int) -> _Turns:
        dataset = np.repeat(np.arange(len(self.turns)), self.turns)[permutation(CYCLE, (self.seed, cycle, MIXTURE_STREAM, 0))]
        turn = np.empty(CYCLE, dtype=np.int64)
        for number, turns in enumerate(self.turns):
            turn[dataset == number] = np.arange(turns)
        return _Turns(dataset=dataset, turn=turn)


def shares(weights: Sequence[float]) -> list[int]:
    """`CYCLE` turns divided by weight, the largest remainders rounded up. Raises: ValueError if one gets none."""
    exact = [weight / sum(weights) * CYCLE for weight in weights]
    turns = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: turns[number] - exact[number])
    for number in by_remainder[: CYCLE - sum(turns)]:
        turns[number] += 1
    if 0 in turns:
        number = turns.index(0)
        raise ValueError(f"data.train.{number}.weight is {weights[number]}; expected at least 1/{CYCLE} of the sum of the weights ({sum(weights):g})")
    return turns
