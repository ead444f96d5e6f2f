"""One linear map an expert, over rows sorted by expert: a plain loop, and torch's grouped GEMM.

Letters beside the package's: I and O the inner and outer width of one linear, R rows sorted by local expert.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self  # Any: autograd's context object has no public type

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

GROUPED_ALIGNMENT_BYTES = 16


class LoopLinear(nn.Module):
    """One linear map an expert, each over its own run of rows: a plain loop, the specification of every other
    backend.

    Constructor, forward and parameter names (`weight0`, `bias0`, ...) are those of Transformer Engine's
    grouped linear, as Megatron's container calls it; its further arguments concern tensor parallelism.
    """

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        bias: bool,
        **_: object,
    ) -> None:
        super().__init__()
        self.num_gemms = num_gemms
        # One storage for all experts, so that a stack of them is a view (`stacked`).
        for i, weight_OI in enumerate(
            torch.empty(num_gemms, output_size, input_size, dtype=config.params_dtype)
        ):
            self.register_parameter(f"weight{i}", nn.Parameter(weight_OI))
        for i, bias_O in enumerate(
            torch.empty(num_gemms if bias else 0, output_size, dtype=config.params_dtype)
        ):
            self.register_parameter(f"bias{i}", nn.Parameter(bias_O))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Tensors that were moved or cast one by one lie apart: they are laid out in one storage anew."""
        before = [tensor.data_ptr() for tensor in self.parameters()]
        super()._apply(fn, recurse)
        if before != [tensor.data_ptr() for tensor in self.parameters()]:
            for tensors in filter(None, self.expert_tensors()):
                for tensor, place in zip(tensors, torch.stack([*tensors]).detach(), strict=True):
                    tensor.data = place
        return self

    def expert_tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights [O, I] and biases [O] (an empty list without biases) by local expert."""
        tensors: list[Tensor] = [tensor for tensor in self._parameters.values() if tensor is not None]
        return tensors[: self.num_gemms], tensors[self.num_gemms :]

    def forward(self, x_RI: Tensor, rows_per_expert: list[int]) -> tuple[Tensor, None]:
        """y_RO of rows sorted by expert; None is the bias that Megatron could leave to the caller."""
        weights, biases = self.expert_tensors()
        biases_or_none: Sequence[Tensor | None] = biases or [None] * self.num_gemms
        parts = zip(x_RI.split(rows_per_expert), weights, biases_or_none, strict=True)
        return torch.cat([F.linear(x, weight_OI, bias_O) for x, weight_OI, bias_O in parts]), None


class GroupedLinear(LoopLinear):
    """The same by torch's grouped GEMM: one kernel for all experts on CUDA."""

    def forward(self, x_RI: Tensor, rows_per_expert: list[int]) -> tuple[Tensor, None]:
        weights, biases = self.expert_tensors()
        return _GroupedLinear.apply(x_RI, rows_per_expert, *weights, *biases), None


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """[e, ...] of equally shaped tensors: a view where they lie evenly spaced in one storage, as the
    constructor and DeepSpeed's flat buffers place them, else a copy."""
    first, storage = tensors[0], tensors[0].untyped_storage().data_ptr()
    step = tensors[1].storage_offset() - first.storage_offset() if len(tensors) > 1 else first.numel()
    is_even = all(
        tensor.untyped_storage().data_ptr() == storage
        and tensor.storage_offset() == first.storage_offset() + i * step
        and tensor.is_contiguous()
        for i, tensor in enumerate(tensors)
    )
    is_aligned = (
        step * first.element_size()
    ) % GROUPED_ALIGNMENT_BYTES == 0 and first.data_ptr() % GROUPED_ALIGNMENT_BYTES == 0
    if is_even and is_aligned and step >= first.numel():
        return first.as_strided((len(tensors), *first.shape), (step, *first.stride()))
    return torch.stack([*tensors])


class _GroupedLinear(torch.autograd.Function):
    """grouped_mm has no bias, raises in the backward pass of an empty batch, and would return one gradient
    for the stack."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, rows_per_expert: list[int], *tensors: Tensor) -> Tensor:
        weights, biases = tensors[: len(rows_per_expert)], tensors[len(rows_per_expert) :]
        ends_e = (
            torch.tensor(rows_per_expert, dtype=torch.int32)
            .cumsum(0, dtype=torch.int32)
            .to(x_RI.device, non_blocking=True)
        )
        ctx.rows_per_expert, ctx.has_bias = rows_per_expert, bool(biases)
        ctx.save_for_backward(x_RI, ends_e, *weights)
        if x_RI.shape[0] == 0:
            return x_RI.new_empty(0, weights[0].shape[0])
        y_RO = F.grouped_mm(x_RI, stacked(weights).transpose(1, 2), offs=ends_e)
        for y, bias_O in zip(y_RO.split(rows_per_expert), biases, strict=False):
            y.add_(bias_O)
        return y_RO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, ends_e, *weights = ctx.saved_tensors
        grad_y_RO = grads[0].contiguous()
        grad_x_RI: Tensor | None
        grad_w_eOI: Sequence[Tensor]
        if x_RI.shape[0] == 0:
            grad_x_RI, grad_w_eOI = torch.zeros_like(x_RI), [torch.zeros_like(weight) for weight in weights]
        else:
            grad_x_RI = (
                F.grouped_mm(grad_y_RO, stacked(weights), offs=ends_e) if ctx.needs_input_grad[0] else None
            )
            grad_w_eOI = F.grouped_mm(grad_y_RO.t(), x_RI, offs=ends_e).unbind()
            for rows, grad_w_OI in zip(ctx.rows_per_expert, grad_w_eOI, strict=True):
                if rows == 0:
                    # An empty product is a zero, but no document promises that a kernel writes it.
                    grad_w_OI.zero_()
        grad_b_eO = (
            [grad_y.sum(dim=0) for grad_y in grad_y_RO.split(ctx.rows_per_expert)] if ctx.has_bias else []
        )
        return grad_x_RI, None, *grad_w_eOI, *grad_b_eO
