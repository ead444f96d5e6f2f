"""The parts around the expert GEMMs with their gradients, in a kernel each: rows of experts, bias and
activation, the weighted sum of a token's rows.

Letters beside the package's: R rows sorted by expert, and by token within an expert; I the width before the
activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self  # Any: autograd's context object has no public type

import torch
from torch import Tensor

from diffmoe_scale.moe.fused_activation import bias_activation, bias_activation_backward
from diffmoe_scale.moe.fused_rows import combine_rows, combine_rows_backward, gather_rows
from diffmoe_scale.moe.grouped_linear import stacked, sum_rows


@dataclass(frozen=True)
class RowBias:
    """A bias that was not added to rows yet."""

    biases: Sequence[Tensor]
    """[D] of every expert."""
    rows_per_expert: list[int]
    ends_e: Tensor


@dataclass(frozen=True)
class FusedPermutation:
    """`Permutation` of fewer and fused operations, for gates at their rows."""

    place_ES: Tensor
    """The rows up to and with this token of this expert, over all experts one after another."""
    num_rows: int

    @classmethod
    def of(cls, mask_SE: Tensor, *, num_rows: int) -> Self:
        """Of a mask that is true `num_rows` times."""
        taken_ES = mask_SE.t().to(torch.int32, memory_format=torch.contiguous_format)
        return cls(taken_ES.flatten().cumsum(0, dtype=torch.int32).view_as(taken_ES), num_rows)

    def rows(self, x_SD: Tensor) -> Tensor:
        """The token of each row [R, D]."""
        rows_RD: Tensor = _Rows.apply(x_SD, self)
        return rows_RD

    def combine(self, rows_RD: Tensor, gate_SE: Tensor, bias: RowBias | None) -> Tensor:
        """The sum of gate * (row + bias) over each token's rows, [S, D]."""
        y_SD: Tensor = _Combine.apply(rows_RD, gate_SE, self, bias, *(bias.biases if bias else ()))
        return y_SD


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, permutation: FusedPermutation) -> Tensor:
        ctx.permutation = permutation
        return gather_rows(x_SD.contiguous(), permutation.place_ES, permutation.num_rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return combine_rows(grads[0].contiguous(), ctx.permutation.place_ES, None, None), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        gate_SE: Tensor,
        permutation: FusedPermutation,
        bias: RowBias | None,
        *biases: Tensor,
    ) -> Tensor:
        ctx.permutation, ctx.bias = permutation, bias
        rows_RD = rows_RD.contiguous()
        ctx.save_for_backward(rows_RD, gate_SE, *biases)
        return combine_rows(rows_RD, permutation.place_ES, gate_SE, stacked(biases) if biases else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, gate_SE, *biases = ctx.saved_tensors
        grad_RD, grad_gate_SE = combine_rows_backward(
            grads[0].contiguous(),
            rows_RD,
            ctx.permutation.place_ES,
            gate_SE,
            stacked(biases) if biases else None,
        )
        if not biases:
            return grad_RD, grad_gate_SE, None, None
        grad_b = sum_rows(grad_RD, ctx.bias.rows_per_expert, ctx.bias.ends_e)
        return grad_RD, grad_gate_SE, None, None, *grad_b


def activate_rows(
    pre_RI: Tensor, rows_per_expert: list[int], ends_e: Tensor, biases: Sequence[Tensor], *, is_gated: bool
) -> Tensor:
    """`nn.feed_forward.activate` of rows plus their expert's bias [I], if there are biases."""
    hidden_RF: Tensor = _BiasActivation.apply(pre_RI, ends_e, max(rows_per_expert), is_gated, *biases)
    return hidden_RF


class _BiasActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre_RI: Tensor, ends_e: Tensor, most_rows: int, is_gated: bool, *biases: Tensor
    ) -> Tensor:
        ctx.is_gated = is_gated
        ctx.save_for_backward(pre_RI, ends_e, *biases)
        return bias_activation(pre_RI, stacked(biases) if biases else None, ends_e, most_rows, is_gated)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre_RI, ends_e, *biases = ctx.saved_tensors
        bias_eI = stacked(biases) if biases else None
        grad_RI, grad_bias_eI = bias_activation_backward(
            grads[0].contiguous(), pre_RI, bias_eI, ends_e, ctx.is_gated
        )
        return grad_RI, None, None, None, *(grad_bias_eI.unbind() if biases else ())
