"""The normalization of a DiT block: LayerNorm without weights, and what adaLN makes of it.

B samples, N tokens a sample, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(x_BND: Tensor) -> Tensor:
    """Zero mean and unit variance over D."""
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)


def modulate(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """x * (1 + scale) + shift, one shift and scale a sample (adaLN)."""
    return torch.addcmul(shift_BD[:, None], x_BND, 1 + scale_BD[:, None])
