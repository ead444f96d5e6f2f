"""Bias and activation of all rows of experts as one operation of torch's: a Triton kernel on CUDA, and in
plain torch (the specification) elsewhere. It has no gradient of its own; `fused` gives it one.

Letters beside the package's: R rows sorted by expert, and by token within an expert; I the width before the
activation (F, or 2 F of SwiGLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.moe.grouped_linear import expert_of_rows
from diffmoe_scale.nn.feed_forward import activate

ROWS, COLUMNS = 32, 64
"""Of a program."""


@torch.library.custom_op("diffmoe::bias_activation", mutates_args=(), device_types="cpu")
def bias_activation(
    pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, most_rows: int, is_gated: bool
) -> Tensor:
    """`activate` of pre + bias, [R, F]; in fp32 inside. `ends_e` is where each expert's rows end, and none
    has more than `most_rows`."""
    return activate(_biased(pre_RI, bias_eI, ends_e), is_gated=is_gated).to(pre_RI.dtype)


@bias_activation.register_fake
def _(pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, most_rows: int, is_gated: bool) -> Tensor:
    return pre_RI.new_empty(pre_RI.shape[0], pre_RI.shape[1] // (2 if is_gated else 1))


@bias_activation.register_kernel("cuda")
def _(pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, most_rows: int, is_gated: bool) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import activation_kernel

    width = pre_RI.shape[1] // (2 if is_gated else 1)
    hidden_RF = pre_RI.new_empty(len(pre_RI), width)
    activation_kernel[(-(-most_rows // ROWS), len(ends_e), -(-width // COLUMNS))](
        pre_RI,
        bias_eI,
        ends_e,
        hidden_RF,
        width,
        IS_GATED=is_gated,
        HAS_BIAS=bias_eI is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return hidden_RF


@torch.library.custom_op("diffmoe::bias_activation_backward", mutates_args=(), device_types="cpu")
def bias_activation_backward(
    grad_RF: Tensor, pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, is_gated: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of pre [R, I] and, the sums of its rows, of the biases [e, I] (empty without)."""
    biased_RI, grad_RF = _biased(pre_RI, bias_eI, ends_e), grad_RF.float()
    if is_gated:
        gate_RF, value_RF = biased_RI.chunk(2, dim=1)
        grad_gate_RF = torch.ops.aten.silu_backward(grad_RF * value_RF, gate_RF)
        grad_RI = torch.cat([grad_gate_RF, grad_RF * F.silu(gate_RF)], dim=1)
    else:
        grad_RI = torch.ops.aten.gelu_backward(grad_RF, biased_RI, approximate="tanh")
    if bias_eI is None:
        return grad_RI.to(pre_RI.dtype), pre_RI.new_empty(0)
    sums_eI = grad_RI.new_zeros(bias_eI.shape).index_add_(0, expert_of_rows(len(pre_RI), ends_e), grad_RI)
    return grad_RI.to(pre_RI.dtype), sums_eI.to(bias_eI.dtype)


@bias_activation_backward.register_fake
def _(
    grad_RF: Tensor, pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, is_gated: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pre_RI), pre_RI.new_empty(0) if bias_eI is None else torch.empty_like(bias_eI)


@bias_activation_backward.register_kernel("cuda")
def _(
    grad_RF: Tensor, pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor, is_gated: bool
) -> tuple[Tensor, Tensor]:
    from diffmoe_scale.moe.triton_kernels import activation_backward_kernel

    width = grad_RF.shape[1]
    grad_RI = torch.empty_like(pre_RI)
    grad_bias_eI = pre_RI.new_empty(0) if bias_eI is None else torch.empty_like(bias_eI)
    activation_backward_kernel[(-(-width // COLUMNS), len(ends_e))](
        grad_RF,
        pre_RI,
        bias_eI,
        ends_e,
        grad_RI,
        grad_bias_eI,
        width,
        IS_GATED=is_gated,
        HAS_BIAS=bias_eI is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return grad_RI, grad_bias_eI


def _biased(pre_RI: Tensor, bias_eI: Tensor | None, ends_e: Tensor) -> Tensor:
    if bias_eI is None:
        return pre_RI.float()
    return pre_RI.float() + bias_eI[expert_of_rows(len(pre_RI), ends_e)].float()
