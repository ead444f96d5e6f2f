"""How unusual a step's loss is among those before it. Plain numbers: the same on every rank that is given the
same sums."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any  # JSON trees

SLOWEST_UPDATE = 0.01
MAD_TO_SIGMA = 1.4826
SMALLEST_SPREAD = 0.01


class LossHistory:
    """Running mean loss of each time bin, and the last `window` steps' losses over these means.

    The loss of a sample depends on its time t more than on anything else, so a step's mean says little until
    each loss is divided by what is usual at its t.
    """

    def __init__(self, *, num_bins: int, window: int) -> None:
        self._means = [0.0] * num_bins
        self._updates = [0] * num_bins
        self._values: deque[float] = deque(maxlen=window)

    def ratio(self, loss: float, time_bin: int) -> float:
        """A sample's loss over the running mean of its bin; 1 where the bin has none yet."""
        return loss / self._means[time_bin] if self._means[time_bin] > 0 else 1.0

    def value(self, sums: Sequence[float], counts: Sequence[float]) -> float:
        """Mean of `ratio` over a step's samples from the sums and counts of each bin, all finite; 1 without
        samples."""
        total = sum(counts)
        if total == 0:
            return 1.0
        return (
            sum(
                count * self.ratio(loss / count, time_bin)
                for time_bin, (loss, count) in enumerate(zip(sums, counts, strict=True))
                if count
            )
            / total
        )

    def z_score(self, value: float) -> float | None:
        """Distance of a step's value from the median of the window, in robust standard deviations; None until
        the window is full."""
        if len(self._values) < (self._values.maxlen or 0):
            return None
        middle = median(self._values)
        spread = MAD_TO_SIGMA * median(abs(other - middle) for other in self._values)
        # A loss that hardly moves has no noise to be measured by.
        return (value - middle) / max(spread, SMALLEST_SPREAD * middle, math.ulp(1.0))

    def add(self, value: float, sums: Sequence[float], counts: Sequence[float], *, is_usual: bool) -> None:
        """Take a step in. An unusual one leaves the bins as they are, and enters the window: a loss that
        stays high becomes usual."""
        self._values.append(value)
        for time_bin, (loss, count) in enumerate(zip(sums, counts, strict=True)):
            if is_usual and count > 0:
                self._updates[time_bin] += 1
                weight = max(SLOWEST_UPDATE, 1 / self._updates[time_bin])
                self._means[time_bin] += weight * (loss / count - self._means[time_bin])

    def state(self) -> dict[str, Any]:
        return {"means": self._means.copy(), "updates": self._updates.copy(), "values": list(self._values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`, also of another length of window."""
        self._means, self._updates = list(state["means"]), list(state["updates"])
        self._values = deque(state["values"], maxlen=self._values.maxlen)
