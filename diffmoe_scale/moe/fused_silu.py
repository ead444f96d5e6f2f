"""SiLU in fp32 of another format, as one operation of torch's: a Triton kernel on CUDA, and in plain torch
(the specification) elsewhere."""

from typing import Any  # autograd's context object has no public type

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024
"""Numbers of a program."""


def silu_fp32(x: Tensor) -> Tensor:
    """SiLU of x in fp32, not rounded to the format of x."""
    if x.dtype == torch.float32 or torch.compiler.is_compiling():
        return F.silu(x.float())
    y: Tensor = _Silu.apply(x)
    return y


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return silu(x.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return silu_backward(grads[0].contiguous(), x.contiguous())


@torch.library.custom_op("diffmoe::silu_fp32", mutates_args=(), device_types="cpu")
def silu(x: Tensor) -> Tensor:
    """SiLU of x in fp32."""
    return F.silu(x.float())


@silu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


@silu.register_kernel("cuda")
def _(x: Tensor) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import silu_kernel

    y = torch.empty_like(x, dtype=torch.float32)
    silu_kernel[(-(-x.numel() // BLOCK),)](x, y, x.numel(), BLOCK=BLOCK)
    return y


@torch.library.custom_op("diffmoe::silu_fp32_backward", mutates_args=(), device_types="cpu")
def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, in its format, from that of its SiLU."""
    return torch.ops.aten.silu_backward(grad, x.float()).to(x.dtype)


@silu_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@silu_backward.register_kernel("cuda")
def _(grad: Tensor, x: Tensor) -> Tensor:
    from diffmoe_scale.moe.triton_kernels import silu_backward_kernel

    grad_x = torch.empty_like(x)
    silu_backward_kernel[(-(-x.numel() // BLOCK),)](grad, x, grad_x, x.numel(), BLOCK=BLOCK)
    return grad_x
