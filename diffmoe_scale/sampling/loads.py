"""How much the experts worked, by the time at which the network was called.

L layers with experts, E experts, T different times of calls.
"""

import torch
from torch import Tensor


class LoadByTime:
    """Means of the experts' load over calls of the network at equal times.

    The load of an expert is the share of the tokens that it took, times E: 1 is a dense network's work. A
    dense model adds nothing.
    """

    def __init__(self) -> None:
        self._sums: dict[float, Tensor] = {}
        self._weights: dict[float, float] = {}

    def add(self, time: float, load_LE: Tensor, *, weight: float) -> None:
        """One call at `time`; `weight` is the number of its pictures."""
        self._sums[time] = self._sums.get(time, 0.0) + load_LE * weight
        self._weights[time] = self._weights.get(time, 0.0) + weight

    def on_cpu(self) -> "LoadByTime":
        """A copy that can travel to other ranks."""
        copy = LoadByTime()
        copy._sums = {time: total_LE.cpu() for time, total_LE in self._sums.items()}
        copy._weights = dict(self._weights)
        return copy

    def merge(self, other: "LoadByTime") -> None:
        for time, total_LE in other._sums.items():
            self._sums[time] = self._sums.get(time, 0.0) + total_LE
            self._weights[time] = self._weights.get(time, 0.0) + other._weights[time]

    @property
    def times(self) -> list[float]:
        """Falling, from noise to data."""
        return sorted(self._sums, reverse=True)

    @property
    def load_TLE(self) -> Tensor:
        """On the CPU; empty ([0, 0, 0]) without calls."""
        if not self._sums:
            return torch.zeros(0, 0, 0)
        return torch.stack([self._sums[time] / self._weights[time] for time in self.times]).cpu()

    @property
    def work(self) -> float:
        """The sum over calls of the network and their pictures of the capacity of each: what its experts
        computed, in units of a dense network's; 0 for a dense model."""
        return float(sum(total_LE.mean() for total_LE in self._sums.values()))

    @property
    def capacity(self) -> float:
        """Average inference capacity (DiffMoE eq. 15): the mean over times, layers and experts; 1 for a dense
        model."""
        return float(self.load_TLE.mean()) if self._sums else 1.0
