"""Seconds of the parts of a training step, which are named in traces of torch's profiler too."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.profiler import record_function


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase over the ranks, and the rank on which it took the longest."""

    mean_s: float
    median_s: float
    slowest_s: float
    slowest_rank: int


class Phases:
    """Clocks of named phases of this rank, from one `take` to the next.

    On CUDA a phase is what the GPU did in it, between two events, and nothing waits for it before `take`; on
    CPU it is wall time. Waiting for other ranks counts where it happens. One phase may lie inside another,
    and counts in both.
    """

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        """`names` are all phases there are, the same on every rank."""
        self._device, self._names = device, tuple(names)
        self._seconds = dict.fromkeys(names, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What happens inside belongs to phase `name`."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            with record_function(name):
                yield
            self._seconds[name] += time.perf_counter() - started
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        with record_function(name):
            yield
        end.record()
        self._events.append((name, begin, end))

    def take(self, group: dist.ProcessGroup) -> dict[str, PhaseTime]:
        """What every phase took since the last call. Collective over `group`: one all-gather."""
        seconds = self.state()
        mine_P = torch.tensor([seconds[name] for name in self._names], device=self._device)
        self._seconds = dict.fromkeys(self._names, 0.0)
        ranks_RP = mine_P.new_empty(group.size(), len(self._names))
        dist.all_gather_into_tensor(ranks_RP.view(-1), mine_P, group=group)
        slowest_P = ranks_RP.max(dim=0)
        columns = zip(
            self._names,
            ranks_RP.mean(dim=0).tolist(),
            ranks_RP.quantile(0.5, dim=0).tolist(),
            slowest_P.values.tolist(),
            slowest_P.indices.tolist(),
            strict=True,
        )
        return {name: PhaseTime(*figures) for name, *figures in columns}

    def state(self) -> dict[str, float]:
        """This rank's seconds since the last `take`; waits for the device."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events = []
        return self._seconds.copy()

    def restore(self, ranks: Sequence[Mapping[str, float]], *, rank: int) -> None:
        """Count on from the `state()` of `rank`, or from the mean of `ranks` if it is none of them."""
        own = ranks[rank : rank + 1] or ranks
        self._events = []
        self._seconds = {name: sum(state.get(name, 0.0) for state in own) / len(own) for name in self._names}
