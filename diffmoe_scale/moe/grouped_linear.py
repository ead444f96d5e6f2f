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
        ends_e = row_ends(rows_per_expert, device=x_RI.device)
        return grouped_linear(x_RI, rows_per_expert, ends_e, weights, biases), None


def grouped_linear(
    x_RI: Tensor,
    rows_per_expert: list[int],
    ends_e: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """y_RO of rows sorted by expert, which end at `ends_e` (`row_ends`); no biases add none."""
    y_RO: Tensor = _GroupedLinear.apply(x_RI, rows_per_expert, ends_e, *weights, *biases)
    return y_RO


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
    def forward(
        ctx: Any, x_RI: Tensor, rows_per_expert: list[int], ends_e: Tensor, *tensors: Tensor
    ) -> Tensor:
        weights, biases = tensors[: len(rows_per_expert)], tensors[len(rows_per_expert) :]
        ctx.rows_per_expert, ctx.has_bias = rows_per_expert, bool(biases)
        ctx.save_for_backward(x_RI, ends_e, *weights)
        if x_RI.shape[0] == 0:
            return x_RI.new_empty(0, weights[0].shape[0])
        y_RO = F.grouped_mm(x_RI, stacked(weights).transpose(1, 2), offs=ends_e)
        if biases:
            add_bias(y_RO, biases, rows_per_expert, ends_e)
        return y_RO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, ends_e, *weights = ctx.saved_tensors
        grad_y_RO = grads[0].contiguous()
        grad_x_RI: Tensor | None
        if x_RI.shape[0] == 0:
            grad_x_RI, grad_w_eOI = torch.zeros_like(x_RI), torch.zeros_like(stacked(weights))
        else:
            grad_x_RI = (
                F.grouped_mm(grad_y_RO, stacked(weights), offs=ends_e) if ctx.needs_input_grad[0] else None
            )
            grad_w_eOI = F.grouped_mm(grad_y_RO.t(), x_RI, offs=ends_e)
            empty = [i for i, rows in enumerate(ctx.rows_per_expert) if rows == 0]
            if empty:
                # An empty product is a zero, but no document promises that a kernel writes it.
                grad_w_eOI.index_fill_(0, torch.tensor(empty, device=grad_w_eOI.device), 0.0)
        grad_b = sum_rows(grad_y_RO, ctx.rows_per_expert, ends_e) if ctx.has_bias else ()
        return grad_x_RI, None, None, *grad_w_eOI.unbind(), *grad_b


def row_ends(rows_per_expert: list[int], *, device: torch.device) -> Tensor:
    """Where each expert's rows end, int32 [e]. Equal runs are made on the device: nothing is copied there."""
    rows, num_experts = rows_per_expert[0], len(rows_per_expert)
    if is_even(rows_per_expert) and rows > 0:
        return torch.arange(rows, (num_experts + 1) * rows, rows, dtype=torch.int32, device=device)
    ends_e = torch.tensor(rows_per_expert, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends_e.to(device, non_blocking=True)


def is_even(rows_per_expert: list[int]) -> bool:
    """Whether every expert has as many rows as the first: always in training with pools of a rank."""
    return all(rows == rows_per_expert[0] for rows in rows_per_expert)


def add_bias(y_RO: Tensor, biases: Sequence[Tensor], rows_per_expert: list[int], ends_e: Tensor) -> None:
    """Add every expert's bias to its rows, in place."""
    if is_even(rows_per_expert):
        y_RO.unflatten(0, (len(biases), -1)).add_(stacked(biases).unsqueeze(1))
    elif y_RO.is_cuda:
        y_RO.add_(stacked(biases)[expert_of_rows(len(y_RO), ends_e)])
    else:
        for y, bias_O in zip(y_RO.split(rows_per_expert), biases, strict=True):
            y.add_(bias_O)


def sum_rows(grad_y_RO: Tensor, rows_per_expert: list[int], ends_e: Tensor) -> Sequence[Tensor]:
    """The sum of every expert's rows, e tensors [O]: the gradients of its bias."""
    if is_even(rows_per_expert):
        return grad_y_RO.unflatten(0, (len(rows_per_expert), rows_per_expert[0])).sum(dim=1).unbind()
    if grad_y_RO.is_cuda:
        return sum_rows_at_once(grad_y_RO, ends_e).unbind()
    return [grad_y.sum(dim=0) for grad_y in grad_y_RO.split(rows_per_expert)]


def expert_of_rows(num_rows: int, ends_e: Tensor) -> Tensor:
    """The local expert of each row, int32 [R], in two kernels however many experts there are."""
    row_R = torch.arange(num_rows, dtype=torch.int32, device=ends_e.device)
    return torch.bucketize(row_R, ends_e, right=True, out_int32=True)


def sum_rows_at_once(rows_RO: Tensor, ends_e: Tensor) -> Tensor:
    """Sums [e, O] of every expert's rows, however unequal, by one product with ones for all experts: added up
    in fp32. Of ones there are the 8 columns that the kernel's alignment asks for."""
    ones_R8 = rows_RO.new_ones(len(rows_RO), 8)
    sums_eO = F.grouped_mm(ones_R8.t(), rows_RO, offs=ends_e)[:, 0]
    is_empty_e1 = (ends_e.diff(prepend=ends_e.new_zeros(1)) == 0).unsqueeze(1)
    return sums_eO.masked_fill(is_empty_e1, 0.0)
