"""Which expert takes which token, as functions of scores only.

Letters beside the package's: P tokens of a pool, X any leading dimensions (experts, or experts and pools).
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.words import counted


def kth_largest(values_XP: Tensor, k: int) -> Tensor:
    """The k-th largest value along the last dimension, [X]."""
    return values_XP.topk(k, dim=-1, sorted=False).values.amin(dim=-1)


def select_best(scores_XP: Tensor, count_X1: Tensor | int, kth_X1: Tensor) -> Tensor:
    """Mask [X, P] of the `count` largest scores, `kth` the smallest of them; of equal scores the first in the
    pool win."""
    above_XP = scores_XP > kth_X1
    tied_XP = scores_XP == kth_X1
    left_X1 = count_X1 - above_XP.sum(dim=-1, keepdim=True)
    return above_XP | (tied_XP & (tied_XP.cumsum(dim=-1) <= left_X1))


def select_top(scores_XP: Tensor, k: int) -> Tensor:
    """Mask [X, P]: the k largest of each row (DiffMoE eq. 6)."""
    return select_best(scores_XP, k, kth_largest(scores_XP, k).unsqueeze(-1))


def select_counted(scores_XP: Tensor, count_X: Tensor) -> Tensor:
    """Mask [X, P]: the count_X largest of each row, a number of its own for every row, 0 included."""
    ordered_XP = scores_XP.sort(dim=-1, descending=True).values
    kth_X1 = ordered_XP.gather(-1, (count_X - 1).clamp_min(0).unsqueeze(-1))
    return select_best(scores_XP, count_X.unsqueeze(-1), kth_X1)


def select_experts(scores_SE: Tensor, k: int) -> Tensor:
    """Mask [S, E]: the k best experts of each token; of equal scores the first experts win."""
    best_Sk = scores_SE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(scores_SE, dtype=torch.bool).scatter_(1, best_Sk, True)


def training_capacity(config: MoEConfig, step: int | None, *, image_pixels: float = math.inf) -> float:
    """C of DiffMoE eq. 6 at optimizer step `step` (the first is 1): linear from `moe.capacity_start`, in step
    1, to `final_capacity` after `moe.capacity_steps`. None is outside of training: the final one."""
    final = final_capacity(config, image_pixels)
    if step is None or step > config.capacity_steps:
        return final
    return config.capacity_start + (final - config.capacity_start) * (step - 1) / config.capacity_steps


def final_capacity(config: MoEConfig, image_pixels: float) -> float:
    """The capacity of images of so many pixels: that of the first resolution of
    `moe.capacity_by_resolution` whose square holds them, `moe.capacity` for larger ones."""
    for resolution, capacity in config.capacity_by_resolution:
        if image_pixels <= resolution**2:
            return capacity
    return config.capacity


def tokens_per_expert(capacity: float, num_tokens: int, num_experts: int, *, multiple: int = 1) -> int:
    """K = floor(C * P / E), the tokens an expert takes of a pool, rounded down to a multiple. Raises
    ValueError where the pool is too small."""
    exact = math.floor(capacity * num_tokens / num_experts)
    k = exact - exact % multiple
    if k < 1 or num_tokens < num_experts:
        rounding = f", rounded down to a multiple of {multiple} for moe.precision" if multiple > 1 else ""
        raise ValueError(
            f"moe.num_experts is {num_experts} for a pool of {counted(num_tokens, 'token')} at capacity "
            f"{capacity:g}: {counted(exact, 'token')} an expert{rounding}; expected at least {multiple}, and "
            "as many tokens as experts: enlarge run.micro_batch, the image, moe.pool or moe.capacity, or use "
            "fewer experts"
        )
    return k


def pairs_per_pool(capacity: float, num_tokens: int, num_experts: int) -> int:
    """K = floor(C * P), the pairs of token and expert that a pool's race takes. Raises ValueError where the
    pool is too small."""
    k = min(math.floor(capacity * num_tokens), num_tokens * num_experts)
    if k < 1:
        raise ValueError(
            f"moe.capacity is {capacity:g} for a pool of {counted(num_tokens, 'token')}: none is taken; "
            "enlarge run.micro_batch, the image, moe.pool or moe.capacity"
        )
    return k


def gather_pool(values_SX: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Values of all ranks' tokens [X, P], in rank order, without gradient. Collective over `group` (None:
    this rank's own)."""
    values_XS = values_SX.detach().t().contiguous()
    if group is None or group.size() == 1:
        return values_XS
    values_GXS = values_XS.new_empty(group.size(), *values_XS.shape)
    dist.all_gather_into_tensor(values_GXS.flatten(0, 1), values_XS, group=group)
    return values_GXS.transpose(0, 1).flatten(1)


def split_pools(values_XS: Tensor, num_pools: int, group: dist.ProcessGroup | None) -> Tensor:
    """[X, G, P] of what `gather_pool` answers: each rank of `group` has an equal part of every pool."""
    ranks = 1 if group is None else group.size()
    return values_XS.unflatten(1, (ranks, num_pools, -1)).transpose(1, 2).flatten(2)


def own_pools(mask_XGP: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The part [X, S] of this rank."""
    if group is not None:
        mask_XGP = mask_XGP.chunk(group.size(), dim=2)[group.rank()]
    return mask_XGP.flatten(1)


def mean_over(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The mean of all ranks' values, without gradient. Collective over `group` (None: the values)."""
    if group is None:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=group)
    return total / group.size()
