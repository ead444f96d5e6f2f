"""The rows of experts: which token each one is, the way there and the way back.

Letters beside the package's: R rows sorted by expert, and by token within an expert.
"""

from dataclasses import dataclass
from typing import Any, Self  # Any: autograd's context object has no public type

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Permutation:
    """Token and expert of each row, and the rows of each token. Made without waiting for the device; every
    sum is in the order of experts, so that it is the same in each run."""

    token_R: Tensor
    expert_R: Tensor
    order_R: Tensor
    """The rows by token."""
    start_S: Tensor
    """Where a token's rows begin in `order_R`."""

    @classmethod
    def of(cls, mask_SE: Tensor, *, num_rows: int) -> Self:
        """Of a mask that is true `num_rows` times."""
        expert_R, token_R = torch.nonzero_static(mask_SE.t().contiguous(), size=num_rows).t().contiguous()
        sorted_R, order_R = token_R.sort(stable=True)
        token_S = torch.arange(len(mask_SE), device=mask_SE.device)
        return cls(token_R, expert_R, order_R, torch.searchsorted(sorted_R, token_S))

    def rows(self, x_SD: Tensor) -> Tensor:
        """The token of each row [R, D]."""
        rows_RD: Tensor = _Rows.apply(x_SD, self)
        return rows_RD

    def gates(self, gate_SE: Tensor) -> Tensor:
        """The gate of each row [R]."""
        gate_R: Tensor = _Gates.apply(gate_SE, self)
        return gate_R

    def tokens(self, rows_RD: Tensor) -> Tensor:
        """The sum of each token's rows [S, D]: 0 where it has none."""
        x_SD: Tensor = _Tokens.apply(rows_RD, self)
        return x_SD

    def combine(self, rows_RD: Tensor, gate_SE: Tensor, bias: object | None) -> Tensor:
        """The sum of gate * row over each token's rows, [S, D]. Biases were added before."""
        assert bias is None, "rows have their bias"
        return self.tokens(_Gated.apply(rows_RD, self.gates(gate_SE)))

    def sum_rows(self, rows_RD: Tensor) -> Tensor:
        """`tokens` without a gradient. Added up in fp32, whatever the format."""
        return F.embedding_bag(self.order_R, rows_RD.detach(), self.start_S, mode="sum")


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation = permutation
        return x_SD.index_select(0, permutation.token_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.permutation.sum_rows(grads[0].contiguous()), None


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation = permutation
        return permutation.sum_rows(rows_RD.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.permutation.token_R), None


class _Gates(torch.autograd.Function):
    """No two rows have the same token and expert: the gradient is put in place, nothing is added."""

    @staticmethod
    def forward(ctx: Any, gate_SE: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation, ctx.shape = permutation, gate_SE.shape
        return gate_SE[permutation.token_R, permutation.expert_R]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_SE = grads[0].new_zeros(ctx.shape)
        grad_SE[ctx.permutation.token_R, ctx.permutation.expert_R] = grads[0]
        return grad_SE, None


class _Gated(torch.autograd.Function):
    """gate * y. The gate is fp32, and the product is rounded once, to the format of y; no fp32 tensor of its
    size is kept."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, gate_R: Tensor) -> Tensor:
        ctx.save_for_backward(y_RD, gate_R)
        return torch.mul(y_RD, gate_R.unsqueeze(1), out=torch.empty_like(y_RD))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (y_RD, gate_R), grad_RD = ctx.saved_tensors, grads[0]
        grad_y_RD = torch.mul(grad_RD, gate_R.unsqueeze(1), out=torch.empty_like(y_RD))
        return grad_y_RD, (grad_RD.to(gate_R.dtype) * y_RD).sum(dim=1)
