"""The tokens of a sample over the ranks of a sequence group, which hold the same samples (DeepSpeed Ulysses,
arXiv 2309.14509).

A rank has every G-th part of a sample's tokens for all that is done token by token, and every G-th part of
the heads in attention. Weights are not split.

B samples, N tokens a sample, n = N / G of this rank, H heads, h = H / G of this rank, d width of a head.
"""

from typing import Any  # autograd's context object has no public type

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.nn.all_to_all import all_to_all


def own_tokens(x_N: Tensor, group: dist.ProcessGroup | None, *, dim: int) -> Tensor:
    """This rank's part of the tokens along `dim`; all of them without a group."""
    if group is None:
        return x_N
    num_tokens, ranks = x_N.shape[dim], group.size()
    if num_tokens % ranks != 0:
        raise ValueError(
            f"an image has {num_tokens} tokens and parallel.sequence_parallel is {ranks}; choose a divisor"
        )
    return x_N.chunk(ranks, dim)[group.rank()]


def gather_tokens(x_Bn: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[B, n, ...] of all ranks as [B, N, ...], of which every rank computes the same loss. Collective over
    the group.

    Each rank's gradient is that of its own tokens times G: the mean over ranks is the loss's gradient.
    """
    if group is None:
        return x_Bn
    gathered: Tensor = _GatherTokens.apply(x_Bn, group)
    return gathered


def to_heads(x_BHnd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All heads of this rank's tokens to this rank's heads of all tokens [B, h, N, d]. Collective over the
    group."""
    parts_GBhnd = x_BHnd.unflatten(1, (group.size(), -1)).movedim(1, 0)
    return all_to_all(parts_GBhnd, group, None, None).movedim(0, 2).flatten(2, 3)


def to_tokens(x_BhNd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back of `to_heads`, [B, H, n, d]. Collective over the group."""
    parts_GBhnd = x_BhNd.unflatten(2, (group.size(), -1)).movedim(2, 0)
    return all_to_all(parts_GBhnd, group, None, None).movedim(0, 1).flatten(1, 2)


def own_heads(x_BHLd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's heads [B, h, L, d] of tokens that all ranks have, those of a caption."""
    return x_BHLd.chunk(group.size(), 1)[group.rank()]


def gather_heads(x_BhLd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back of `own_heads`, [B, H, L, d]. Each rank goes on with a copy of its own, whose gradients
    are added up. Collective over the group."""
    heads: Tensor = _GatherHeads.apply(x_BhLd, group)
    return heads


def _all_gather(x: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    x = x.contiguous()
    parts = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(parts, x, group=group)
    return torch.cat(parts.chunk(group.size()), dim)


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Bn: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x_Bn, group, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.group.size() * own_tokens(grads[0], ctx.group, dim=1), None


class _GatherHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BhLd: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x_BhLd, group, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_BHLd = grads[0].contiguous().clone()
        dist.all_reduce(grad_BHLd, group=ctx.group)
        return own_heads(grad_BHLd, ctx.group), None
