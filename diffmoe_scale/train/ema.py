"""The moving average of the weights, sharded as the optimizer is: a rank averages the slice whose fp32
masters it owns."""

from collections.abc import Sequence

import torch
from torch import Tensor


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, in fp32, on flat slices of the parameters."""

    def __init__(self, masters: Sequence[Tensor], *, decay: float, has_warmup: bool) -> None:
        self.masters = masters
        self.averages = [master.detach().clone() for master in masters]
        self._decay = decay
        self._has_warmup = has_warmup

    def decay(self, step: int) -> float:
        """At optimizer step `step` (the first is 1): min(decay, (1 + n) / (10 + n)) under warm-up."""
        return min(self._decay, (1 + step) / (10 + step)) if self._has_warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`."""
        for average, master in zip(self.averages, self.masters, strict=True):
            average.lerp_(master, 1 - self.decay(step))

    @torch.no_grad()
    def copy(self, other: "WeightAverage") -> None:
        """Begin where another average of the same weights stands."""
        for average, values in zip(self.averages, other.averages, strict=True):
            average.copy_(values)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights; a second call restores both to the bit."""
        for average, master in zip(self.averages, self.masters, strict=True):
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)
