"""Distances of two sets of features by a kernel: KID and CMMD.

N and M pictures, S pictures of a subset, F features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 2020
"""Of KID's subsets; torch-fidelity's."""
DEGREE = 3
SIGMA = 10.0
SCALE = 1000.0
BLOCK = 2048
"""Rows compared at once: 2048 x 2048 in float64 are 32 MiB."""


def kernel_distance(
    first_NF: Tensor, second_MF: Tensor, *, subsets: int, size: int
) -> tuple[float, float | None]:
    """KID (arXiv 1801.01401) in float64: mean and standard deviation (None for a single one), over subsets of
    `size` pictures of both sets, of the unbiased estimate with k = (x y / F + 1)^3. The subsets are those of
    torch-fidelity."""
    random = np.random.RandomState(SEED)
    found = []
    for _ in range(subsets):
        chosen_S, others_S = (random.choice(len(rows), size, replace=False) for rows in (first_NF, second_MF))
        x_SF, y_SF = first_NF[chosen_S].double(), second_MF[others_S].double()
        within = (
            _polynomial(x_SF, x_SF).fill_diagonal_(0).sum() + _polynomial(y_SF, y_SF).fill_diagonal_(0).sum()
        )
        found.append(float(within / (size * (size - 1)) - 2 * _polynomial(x_SF, y_SF).mean()))
    return float(np.mean(found)), float(np.std(found)) if subsets > 1 else None


def _polynomial(first_SF: Tensor, second_SF: Tensor) -> Tensor:
    return (first_SF @ second_SF.T).div_(first_SF.shape[1]).add_(1).pow_(DEGREE)


def cmmd(first_NF: Tensor, second_MF: Tensor) -> float:
    """1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) with k = exp(-|a - b|^2 / (2 * 10^2)) of
    normalized features; the means include a picture with itself, as those of the paper's code."""
    return SCALE * (
        _mean_kernel(first_NF, first_NF)
        + _mean_kernel(second_MF, second_MF)
        - 2 * _mean_kernel(first_NF, second_MF)
    )


def _mean_kernel(first_NF: Tensor, second_MF: Tensor) -> float:
    total = 0.0
    for rows_BF in first_NF.split(BLOCK):
        unit_BF = F.normalize(rows_BF.double(), dim=1)
        for columns_BF in second_MF.split(BLOCK):
            cosines_BB = unit_BF @ F.normalize(columns_BF.double(), dim=1).T
            total += float(torch.exp((cosines_BB - 1) / SIGMA**2).sum())
    return total / (len(first_NF) * len(second_MF))
