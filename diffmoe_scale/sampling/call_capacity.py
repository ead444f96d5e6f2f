"""How much experts worked for each picture in each call of the network, and means of it by time, layer, half
of guidance and kind of prompt.

L layers with experts, K calls of a batch, B its pictures, T times.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

HALVES = ("conditional", "unconditional")
ADAPTIVE_TIMES = 100
"""Adaptive steps call the network at times of no grid: they are gathered in hundredths."""


@dataclass(frozen=True)
class CallCapacity:
    """Capacities [L, B] of one call: of each picture, the mean over experts of their load. `times` and
    `places` are the pictures', the latter in their batch."""

    capacity_LB: Tensor
    times: list[float]
    places: list[int]
    is_conditional: bool


@dataclass
class Mean:
    """Of numbers, or of lists of equally many numbers, with weights."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    weight: float = 0.0

    def add(self, total: Tensor, weight: float) -> None:
        self.total = self.total + total
        self.weight += weight

    @property
    def values(self) -> list[float]:
        return [float(value) for value in (self.total / self.weight).flatten()]


@dataclass(frozen=True)
class PictureCapacity:
    """The mean over a picture's calls and layers."""

    kind: str
    prompt: str
    capacity: float


@dataclass(frozen=True)
class TimeCurve:
    """Capacities at falling times of calls: a row a time, of one number or of one a layer."""

    times: list[float]
    capacity_TL: list[list[float]]


class CapacityProfile:
    """Gathers the calls of many batches."""

    def __init__(self) -> None:
        self._by_half: dict[str, dict[float, Mean]] = {half: {} for half in HALVES}
        self._by_kind: dict[str, dict[float, Mean]] = {}
        self.pictures: list[PictureCapacity] = []

    def add(self, calls: Sequence[CallCapacity], *, kinds: Sequence[str], prompts: Sequence[str]) -> None:
        """A batch; `kinds` and `prompts` are those of its pictures."""
        of_pictures = [Mean() for _ in kinds]
        for call in calls:
            capacity_LB = call.capacity_LB.cpu()
            capacity_B = capacity_LB.mean(dim=0)
            for column, (time, place) in enumerate(zip(call.times, call.places, strict=True)):
                label = round(time * ADAPTIVE_TIMES) / ADAPTIVE_TIMES if _is_adaptive(call.times) else time
                by_half = self._by_half[HALVES[not call.is_conditional]]
                by_half.setdefault(label, Mean()).add(capacity_LB[:, column], 1)
                by_kind = self._by_kind.setdefault(kinds[place], {})
                by_kind.setdefault(label, Mean()).add(capacity_B[column], 1)
                of_pictures[place].add(capacity_B[column], 1)
        for kind, prompt, mean in zip(kinds, prompts, of_pictures, strict=True):
            if mean.weight:
                self.pictures.append(PictureCapacity(kind, prompt, *mean.values))

    @property
    def halves(self) -> dict[str, TimeCurve]:
        """By time and layer; a half that was never called is left out."""
        return {half: _curve(means) for half, means in self._by_half.items() if means}

    @property
    def kinds(self) -> dict[str, TimeCurve]:
        """By time, the mean over layers."""
        return {kind: _curve(means) for kind, means in sorted(self._by_kind.items())}

    def mean_of_kind(self, kind: str) -> tuple[float, float, int]:
        """Mean over the kind's pictures, its standard error, and how many they are."""
        values = [picture.capacity for picture in self.pictures if picture.kind == kind]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return statistics.fmean(values), spread / math.sqrt(len(values)), len(values)


def _curve(means: dict[float, Mean]) -> TimeCurve:
    times = sorted(means, reverse=True)
    return TimeCurve(times, [means[time].values for time in times])


def _is_adaptive(times: Sequence[float]) -> bool:
    """Whether the pictures of a call are at times of their own."""
    return len(set(times)) > 1


def kind_of_caption(caption: str) -> str:
    """Captions of unknown content, by how many words they have: `1 to 4 words`, `5 to 8 words`, ..."""
    count = max(1, len(caption.split()))
    high = max(4, 2 ** math.ceil(math.log2(count)))
    return f"{high // 2 + 1 if high > 4 else 1} to {high} words"
