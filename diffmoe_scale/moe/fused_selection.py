"""`selection.select_top` with its last part as one operation of torch's: a Triton kernel on CUDA, and plain
torch (the specification) elsewhere.

Letters beside the package's: P tokens of a pool, X any leading dimensions.
"""

import torch
from torch import Tensor

from diffmoe_scale.moe.selection import kth_largest, select_best

TOKENS = 1024
"""That a program of the kernel reads at once."""


def select_top(scores_XP: Tensor, k: int) -> Tensor:
    """Mask [X, P]: the k largest of each row (DiffMoE eq. 6)."""
    mask_XP: Tensor = select_from(scores_XP, kth_largest(scores_XP, k).unsqueeze(-1), k)
    return mask_XP


@torch.library.custom_op("diffmoe::select_from", mutates_args=(), device_types="cpu")
def select_from(scores_XP: Tensor, kth_X1: Tensor, k: int) -> Tensor:
    """`select_best` of a number that is the same for all rows, as one operation: on CUDA one kernel."""
    return select_best(scores_XP, k, kth_X1)


@select_from.register_fake
def _(scores_XP: Tensor, kth_X1: Tensor, k: int) -> Tensor:
    return torch.empty_like(scores_XP, dtype=torch.bool, memory_format=torch.contiguous_format)


@select_from.register_kernel("cuda")
def _(scores_XP: Tensor, kth_X1: Tensor, k: int) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import select_kernel

    mask_XP = torch.empty(scores_XP.shape, dtype=torch.bool, device=scores_XP.device)
    rows, num_tokens = kth_X1.numel(), scores_XP.shape[-1]
    select_kernel[(rows,)](scores_XP.contiguous(), kth_X1.contiguous(), mask_XP, k, num_tokens, BLOCK=TOKENS)
    return mask_XP
