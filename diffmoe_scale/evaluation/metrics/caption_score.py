"""How well pictures fit their captions: cosines of CLIP features, added up picture by picture."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class CaptionScore:
    """The mean of 100 times the cosine of a picture's and its caption's features, negative ones as 0
    (arXiv 2104.08718 with the weight 100 instead of 2.5)."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def update(self, cosines_B: Tensor) -> None:
        scores_B = 100 * cosines_B.double().clamp(min=0)
        self.count += len(scores_B)
        self.sum += float(scores_B.sum())
        self.squares += float(scores_B.square().sum())

    def merge(self, group: dist.ProcessGroup) -> None:
        """Add up over the ranks of a gloo group. Collective; all ranks then hold the whole."""
        sums = torch.tensor([self.count, self.sum, self.squares], dtype=torch.float64)
        dist.all_reduce(sums, group=group)
        self.count, self.sum, self.squares = int(sums[0]), float(sums[1]), float(sums[2])

    def score(self) -> tuple[float, float]:
        """Mean, and the standard error of the mean."""
        mean = self.sum / self.count
        variance = max(0.0, self.squares / self.count - mean**2)
        return mean, math.sqrt(variance / max(1, self.count - 1))
