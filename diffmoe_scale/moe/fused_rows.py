"""Tokens to the rows of experts, and the weighted sum of a token's rows, each as one operation of torch's: a
Triton kernel on CUDA, and in plain torch (the specification) elsewhere. None has a gradient of its own;
`fused` gives them theirs.

`place_ES` counts the rows up to and with this token of this expert, over all experts one after another.
Biases, gates and sums are fp32 inside, whatever the format.

Letters beside the package's: R rows sorted by expert, and by token within an expert.
"""

from typing import Any  # a launch's sizes

import torch
from torch import Tensor


@torch.library.custom_op("diffmoe::gather_rows", mutates_args=(), device_types="cpu")
def gather_rows(x_SD: Tensor, place_ES: Tensor, num_rows: int) -> Tensor:
    """The token of each row [R, D]."""
    return x_SD[_tokens_of(place_ES, num_rows)]


@gather_rows.register_fake
def _(x_SD: Tensor, place_ES: Tensor, num_rows: int) -> Tensor:
    return x_SD.new_empty(num_rows, x_SD.shape[1])


@gather_rows.register_kernel("cuda")
def _(x_SD: Tensor, place_ES: Tensor, num_rows: int) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import gather_kernel

    (num_experts, num_tokens), width = place_ES.shape, x_SD.shape[1]
    rows_RD = x_SD.new_empty(num_rows, width)
    gather_kernel[(num_tokens,)](x_SD, place_ES, rows_RD, num_tokens, num_experts, width, **_sizes_of(width))
    return rows_RD


@torch.library.custom_op("diffmoe::combine_rows", mutates_args=(), device_types="cpu")
def combine_rows(rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor | None, bias_ED: Tensor | None) -> Tensor:
    """Tokens [S, D]: the sum of gate * (row + bias) over the rows of a token. None is 1, or 0."""
    token_R, expert_R = _tokens_of(place_ES, len(rows_RD)), _experts_of(place_ES, len(rows_RD))
    values_RD = rows_RD.float()
    if bias_ED is not None:
        values_RD = values_RD + bias_ED[expert_R].float()
    if gate_SE is not None:
        values_RD = values_RD * gate_SE[token_R, expert_R].unsqueeze(1)
    y_SD = values_RD.new_zeros(place_ES.shape[1], rows_RD.shape[1])
    return y_SD.index_add_(0, token_R, values_RD).to(rows_RD.dtype)


@combine_rows.register_fake
def _(rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor | None, bias_ED: Tensor | None) -> Tensor:
    return rows_RD.new_empty(place_ES.shape[1], rows_RD.shape[1])


@combine_rows.register_kernel("cuda")
def _(rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor | None, bias_ED: Tensor | None) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import combine_kernel

    (num_experts, num_tokens), width = place_ES.shape, rows_RD.shape[1]
    y_SD = rows_RD.new_empty(num_tokens, width)
    combine_kernel[(num_tokens,)](
        rows_RD,
        place_ES,
        gate_SE,
        bias_ED,
        y_SD,
        num_tokens,
        num_experts,
        width,
        *((0, 0) if gate_SE is None else gate_SE.stride()),
        HAS_GATE=gate_SE is not None,
        HAS_BIAS=bias_ED is not None,
        **_sizes_of(width),
    )
    return y_SD


@torch.library.custom_op("diffmoe::combine_rows_backward", mutates_args=(), device_types="cpu")
def combine_rows_backward(
    grad_SD: Tensor, rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor, bias_ED: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows [R, D], and of the gates [S, E]: 0 where an expert did not take a token."""
    token_R, expert_R = _tokens_of(place_ES, len(rows_RD)), _experts_of(place_ES, len(rows_RD))
    grad_RD, values_RD = grad_SD[token_R].float(), rows_RD.float()
    if bias_ED is not None:
        values_RD = values_RD + bias_ED[expert_R].float()
    grad_gate_SE = torch.zeros_like(gate_SE, memory_format=torch.contiguous_format)
    grad_gate_SE[token_R, expert_R] = (grad_RD * values_RD).sum(dim=1)
    return (grad_RD * gate_SE[token_R, expert_R].unsqueeze(1)).to(rows_RD.dtype), grad_gate_SE


@combine_rows_backward.register_fake
def _(
    grad_SD: Tensor, rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor, bias_ED: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows_RD), gate_SE.new_empty(gate_SE.shape)


@combine_rows_backward.register_kernel("cuda")
def _(
    grad_SD: Tensor, rows_RD: Tensor, place_ES: Tensor, gate_SE: Tensor, bias_ED: Tensor | None
) -> tuple[Tensor, Tensor]:
    from diffmoe_scale.moe.triton_kernels import combine_backward_kernel

    (num_experts, num_tokens), width = place_ES.shape, rows_RD.shape[1]
    grad_RD, grad_gate_SE = torch.empty_like(rows_RD), gate_SE.new_empty(gate_SE.shape)
    combine_backward_kernel[(num_tokens,)](
        grad_SD,
        rows_RD,
        place_ES,
        gate_SE,
        bias_ED,
        grad_RD,
        grad_gate_SE,
        num_tokens,
        num_experts,
        width,
        *gate_SE.stride(),
        HAS_BIAS=bias_ED is not None,
        **_sizes_of(width),
    )
    return grad_RD, grad_gate_SE


def _sizes_of(width: int) -> dict[str, Any]:
    """Of a program that holds a whole token."""
    block = 1 << (width - 1).bit_length()
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def _tokens_of(place_ES: Tensor, num_rows: int) -> Tensor:
    """The token of each row [R]."""
    return _taken(place_ES, num_rows) % place_ES.shape[1]


def _experts_of(place_ES: Tensor, num_rows: int) -> Tensor:
    """The expert of each row [R]."""
    return _taken(place_ES, num_rows) // place_ES.shape[1]


def _taken(place_ES: Tensor, num_rows: int) -> Tensor:
    steps = place_ES.flatten().diff(prepend=place_ES.new_zeros(1))
    return torch.nonzero_static(steps, size=num_rows).squeeze(1)
