"""Rows from every rank of a group to every other, with gradients."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any  # autograd's context object has no public type

import torch
import torch.distributed as dist
from torch import Tensor

Clock = Callable[[], AbstractContextManager[None]]
"""Counts the time inside `with clock():`."""


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        group: dist.ProcessGroup,
        received: list[int] | None,
        sent: list[int] | None,
        clock: Clock,
    ) -> Tensor:
        ctx.arguments = group, sent, received, clock
        rows = rows.contiguous()
        answer = rows.new_empty(rows.shape[0] if received is None else sum(received), *rows.shape[1:])
        with clock():
            dist.all_to_all_single(answer, rows, received, sent, group=group)
        return answer

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _AllToAll.apply(grads[0], *ctx.arguments), None, None, None, None


def all_to_all(
    rows: Tensor,
    group: dist.ProcessGroup | None,
    received: Iterable[int] | None,
    sent: Iterable[int] | None,
    *,
    clock: Clock = nullcontext,
) -> Tensor:
    """Rows from every rank of `group`, in rank order; None splits evenly. Differentiable: `clock` counts the
    way back, too. Collective over `group`; Megatron's own wants one on CUDA for a rank without peers too."""
    if group is None or group.size() == 1:
        return rows
    # On CUDA Megatron has them as NumPy's.
    splits = (None if split is None else [int(rows) for rows in split] for split in (received, sent))
    return _AllToAll.apply(rows, group, *splits, clock)
