"""Means of values that lie on the device, between two log steps."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Means:
    """What a Meter was given since the last time, by name.

    A scalar whose weights sum to 0 has no mean and is left out; such an element of a vector is NaN.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)


class Meter:
    """Weighted means of named values (scalars or vectors) between two log steps, over micro-batches and
    ranks.

    Adding never waits for the device. Every rank of the group must add the same names with the same shapes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor | float] = {}
        self._weights: dict[str, torch.Tensor | float] = {}

    def add(self, name: str, value: torch.Tensor | float, weight: torch.Tensor | float = 1.0) -> None:
        """Take one more value; `weight` is a number, or has the shape of `value`, such as the samples of each
        tenth of the time axis."""
        self._sums[name] = self._sums.get(name, 0.0) + _detached(value) * _detached(weight)
        self._weights[name] = self._weights.get(name, 0.0) + _detached(weight)

    def means(self, group: dist.ProcessGroup | None = None) -> Means:
        """Means since the last call, then start anew. Collective over `group` (one all-reduce), and the one
        wait for the device."""
        names = sorted(self._sums)
        if not names:
            return Means()
        sums = [torch.as_tensor(self._sums[name], dtype=torch.float32, device=self._device) for name in names]
        weights = [
            torch.as_tensor(self._weights[name], dtype=torch.float32, device=self._device).expand_as(total)
            for name, total in zip(names, sums, strict=True)
        ]
        self._sums, self._weights = {}, {}
        flat = torch.stack([torch.cat([part.reshape(-1) for part in parts]) for parts in (sums, weights)])
        if group is not None:
            dist.all_reduce(flat, group=group)
        values = (flat[0] / flat[1]).tolist()
        has_weight = (flat[1] != 0).tolist()
        means, first = Means(), 0
        for name, total in zip(names, sums, strict=True):
            last = first + total.numel()
            if total.dim() > 0:
                means.vectors[name] = values[first:last]
            elif has_weight[first]:
                means.scalars[name] = values[first]
            first = last
        return means


def _detached(value: torch.Tensor | float) -> torch.Tensor | float:
    return value.detach().float() if isinstance(value, torch.Tensor) else float(value)
