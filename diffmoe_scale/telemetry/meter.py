"""Means of values that lie on the device, between two log steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # JSON values

import numpy as np
import torch
import torch.distributed as dist

Number = torch.Tensor | float
Stored = str | dict[str, Any]
"""A sum as JSON has it, to the bit: `float.hex()` of a number; `shape` and, in hexadecimal, the bytes `fp32`
of a tensor."""
MeterState = Mapping[str, Sequence[Stored]]
"""Sum and weight by name."""


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
        self._sums: dict[str, Number] = {}
        self._weights: dict[str, Number] = {}

    def add(self, name: str, value: Number, weight: Number = 1.0) -> None:
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

    def state(self) -> MeterState:
        """This rank's sums and weights since the last `means`, as JSON values; waits for the device."""
        return {name: [_store(self._sums[name]), _store(self._weights[name])] for name in self._sums}

    def restore(self, ranks: Sequence[MeterState], *, rank: int, size: int) -> None:
        """Go on from the `state()` of each of `ranks`, of which there may be another number than `size` now:
        those of `rank`, `rank + size` and so on are this rank's. A rank without one begins with values
        without weight, since all must have the same names."""
        empty = {name: [_without_weight(part) for part in parts] for name, parts in ranks[0].items()}
        self._sums, self._weights = {}, {}
        for state in ranks[rank::size] or [empty]:
            for name, (total, weight) in state.items():
                self._sums[name] = self._sums.get(name, 0.0) + _load(total, self._device)
                self._weights[name] = self._weights.get(name, 0.0) + _load(weight, self._device)


def _store(value: Number) -> Stored:
    if not isinstance(value, torch.Tensor):
        return value.hex()
    return {"shape": list(value.shape), "fp32": value.cpu().numpy().tobytes().hex()}


def _load(stored: Stored, device: torch.device) -> Number:
    if isinstance(stored, str):
        return float.fromhex(stored)
    flat = np.frombuffer(bytes.fromhex(stored["fp32"]), dtype=np.float32)
    return torch.from_numpy(flat.reshape(stored["shape"]).copy()).to(device)


def _without_weight(stored: Stored) -> Stored:
    if isinstance(stored, str):
        return (0.0).hex()
    return stored | {"fp32": "0" * len(stored["fp32"])}


def _detached(value: Number) -> Number:
    return value.detach().float() if isinstance(value, torch.Tensor) else float(value)
