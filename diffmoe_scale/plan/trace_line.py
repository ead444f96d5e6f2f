"""Traces of micro-batches that were not traced: bytes lie on a line between two that were.

What lives at a moment grows evenly with the micro-batch; the most of a stretch is the larger of several such,
so the line between two is never below it.
"""

from dataclasses import dataclass

from diffmoe_scale.plan.trace import Gradient, Part, Trace


@dataclass(frozen=True)
class TraceLine:
    """Through the traces of a small and a large micro-batch of the same network."""

    small: Trace
    large: Trace
    small_batch: int
    large_batch: int

    def at(self, micro_batch: int) -> Trace:
        """The trace of a micro-batch between the two."""
        if micro_batch in (self.small_batch, self.large_batch):
            return self.small if micro_batch == self.small_batch else self.large
        share = (micro_batch - self.small_batch) / (self.large_batch - self.small_batch)
        return Trace(
            order=self.small.order,
            forward=_between(self.small.forward, self.large.forward, share),
            backward=_between(self.small.backward, self.large.backward, share),
            parameters=self.small.parameters,
        )


def _between(small: dict[str, Part], large: dict[str, Part], share: float) -> dict[str, Part]:
    return {name: _part_between(part, large[name], share) for name, part in small.items()}


def _part_between(small: Part, large: Part, share: float) -> Part:
    def mix(low: int, high: int) -> int:
        return low + round(share * (high - low))

    gradients = [
        Gradient(one.name, mix(one.level, two.level), mix(one.peak, two.peak), mix(one.freed, two.freed))
        for one, two in zip(small.gradients, large.gradients, strict=True)
    ]
    return Part(
        end=mix(small.end, large.end),
        peak=mix(small.peak, large.peak),
        traffic=mix(small.traffic, large.traffic),
        launches=large.launches,
        gradients=gradients,
    )
