"""What torch has no memory-true kernels for on `meta`: fused attention and grouped matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any  # autograd's context object has no public type

import torch
import torch.nn.functional as F
from torch import Tensor


class _FusedAttention(torch.autograd.Function):
    """Keeps what flash attention keeps: its inputs, its output and one fp32 number a query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, tokens, _ = query.shape
        answer = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, answer, sums)
        return answer

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    answer: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return answer


def _grouped_mm(left: Tensor, right: Tensor, *, offs: Tensor) -> Tensor:
    """Of rows by expert with a matrix each, or (both 2-D) of two matrices whose inner dimension is cut."""
    if right.dim() == 3:
        return left.new_empty(left.shape[0], right.shape[2])
    return left.new_empty(offs.shape[0], left.shape[0], right.shape[1])


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Inside, attention and grouped products are the ones for `meta`, in the backward pass too (which a
    TorchFunctionMode would not reach)."""
    kept = F.scaled_dot_product_attention, F.grouped_mm
    F.scaled_dot_product_attention, F.grouped_mm = _attention, _grouped_mm  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.grouped_mm = kept
