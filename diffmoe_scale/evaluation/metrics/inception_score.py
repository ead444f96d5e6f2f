"""The Inception Score by ADM's rule, added up picture by picture.

B pictures, C classes.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

SPLIT = 5000
"""Pictures of a part, in the order of their places; ADM's evaluator."""


@dataclass
class _Part:
    count: int = 0
    sum_C: Tensor | float = 0.0
    """Of the probabilities."""
    negative_entropy: float = 0.0
    """Sum of p log p over pictures and classes."""


@dataclass
class InceptionScore:
    """exp(mean KL(p(y|x) || p(y))) of each part of 5000 pictures; the score is their mean."""

    parts: dict[int, _Part] = field(default_factory=dict)

    def update(self, logits_BC: Tensor, places_B: Tensor) -> None:
        log_BC = logits_BC.double().log_softmax(1)
        numbers_B = places_B // SPLIT
        for number in numbers_B.unique().tolist():
            log_bC = log_BC[numbers_B == number]
            part = self.parts.setdefault(number, _Part())
            part.count += len(log_bC)
            part.sum_C = part.sum_C + log_bC.exp().sum(0)
            part.negative_entropy += float((log_bC.exp() * log_bC).sum())

    def merge(self, group: dist.ProcessGroup) -> None:
        """Add up over ranks. Collective; all ranks then hold the whole."""
        everyone: list[dict[int, _Part]] = [{} for _ in range(group.size())]
        dist.all_gather_object(everyone, self.parts, group=group)
        self.parts = {}
        for parts in everyone:
            for number, other in parts.items():
                part = self.parts.setdefault(number, _Part())
                part.count += other.count
                part.sum_C = part.sum_C + other.sum_C
                part.negative_entropy += other.negative_entropy

    def score(self) -> tuple[float, float | None]:
        """Mean and standard deviation over the parts; None for the deviation of a single one."""
        scores = []
        for part in self.parts.values():
            mean_C = torch.as_tensor(part.sum_C) / part.count
            divergence = part.negative_entropy / part.count - torch.xlogy(mean_C, mean_C).sum()
            scores.append(divergence.exp())
        scores_P = torch.stack(scores)
        deviation = float(scores_P.std(correction=0)) if len(scores_P) > 1 else None
        return float(scores_P.mean()), deviation
