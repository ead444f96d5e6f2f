"""Mean and covariance of features, added up picture by picture, and the Frechet distance of two of them.

B pictures, F features.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.words import counted


@dataclass(frozen=True)
class Gaussian:
    """`mean_F` and `covariance_FF` in float64, of `count` pictures; 0 where the file does not say."""

    mean_F: Tensor
    covariance_FF: Tensor
    count: int


class Moments:
    """Sums in float64 from which mean and covariance follow; the features are not kept."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum_F = torch.zeros(width, dtype=torch.float64)
        self.products_FF = torch.zeros(width, width, dtype=torch.float64)

    def update(self, features_BF: Tensor) -> None:
        wide_BF = features_BF.double()
        self.count += len(wide_BF)
        self.sum_F += wide_BF.sum(0)
        self.products_FF.addmm_(wide_BF.T, wide_BF)

    def merge(self, group: dist.ProcessGroup) -> None:
        """Add up over the ranks of a gloo group. Collective; all ranks then hold the whole."""
        count = torch.tensor(self.count)
        for tensor in (count, self.sum_F, self.products_FF):
            dist.all_reduce(tensor, group=group)
        self.count = int(count)

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, as numpy.cov. Raises: ValueError for fewer than 2 pictures."""
        if self.count < 2:
            raise ValueError(f"the covariance of {counted(self.count, 'picture')}; expected at least 2")
        mean_F = self.sum_F / self.count
        centred_FF = self.products_FF - self.count * torch.outer(mean_F, mean_F)
        return Gaussian(mean_F, centred_FF / (self.count - 1), self.count)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), arXiv 1706.08500 eq. 6.

    The eigenvalues of C1 C2 are those of R C2 R with R = C1^(1/2), which is symmetric: no complex numbers
    appear, and a covariance of less than full rank needs no small number on its diagonal.
    """
    values_F, vectors_FF = torch.linalg.eigh(first.covariance_FF)
    root_FF = (vectors_FF * values_F.clamp(min=0).sqrt()) @ vectors_FF.T
    inner_FF = root_FF @ second.covariance_FF @ root_FF
    inner_F = torch.linalg.eigvalsh((inner_FF + inner_FF.T) / 2)
    trace = first.covariance_FF.trace() + second.covariance_FF.trace()
    means = (first.mean_F - second.mean_F).square().sum()
    return float(means + trace - 2 * inner_F.clamp(min=0).sqrt().sum())
