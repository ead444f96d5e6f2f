# mypy: disable-error-code=no-untyped-def
# Triton's types are not Python's.
"""Triton kernels for what lies between the expert GEMMs: rows of experts, bias and activation, the weighted
sum of a token's rows. `fused_rows` and `fused_activation` have the same in plain torch.

`place_ES` counts the rows up to and with this token of this expert, over all experts one after another: a
token has a row of an expert where it is larger than the number before, which is that row's index. Every sum
has one order, and nothing is added by atomics. Everything is computed in fp32 and rounded once.

Letters beside the package's: R rows sorted by expert, and by token within an expert.
"""

import triton
import triton.language as tl


@triton.jit
def row_of(place, token, expert, num_tokens):
    """Where the token's row of the expert is, and whether it has one."""
    i = expert * num_tokens + token
    start = tl.load(place + i - 1, mask=i > 0, other=0)
    return start.to(tl.int64), tl.load(place + i) > start


@triton.jit
def gather_kernel(x, place, rows, num_tokens, num_experts, width, BLOCK: tl.constexpr):
    """rows_RD of x_SD. A program a token."""
    token = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + token.to(tl.int64) * width + d, mask=d < width)
    for expert in range(num_experts):
        row, is_taken = row_of(place, token, expert, num_tokens)
        if is_taken:
            tl.store(rows + row * width + d, values, mask=d < width)


@triton.jit
def combine_kernel(
    rows,
    place,
    gate,
    bias,
    y,
    num_tokens,
    num_experts,
    width,
    gate_stride_s,
    gate_stride_e,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y_SD: the sum of gate * (row + bias) over the rows of a token. A program a token."""
    token = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for expert in range(num_experts):
        row, is_taken = row_of(place, token, expert, num_tokens)
        if is_taken:
            value = tl.load(rows + row * width + d, mask=d < width, other=0.0).to(tl.float32)
            if HAS_BIAS:
                value += tl.load(bias + expert * width + d, mask=d < width, other=0.0).to(tl.float32)
            if HAS_GATE:
                value *= tl.load(gate + token * gate_stride_s + expert * gate_stride_e)
            total += value
    tl.store(y + token.to(tl.int64) * width + d, total.to(y.dtype.element_ty), mask=d < width)


@triton.jit
def combine_backward_kernel(
    grad_y,
    rows,
    place,
    gate,
    bias,
    grad_rows,
    grad_gate,
    num_tokens,
    num_experts,
    width,
    gate_stride_s,
    gate_stride_e,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_rows_RD and grad_gate_SE (0 where a token was not taken). A program a token."""
    token = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    grad = tl.load(grad_y + token.to(tl.int64) * width + d, mask=d < width, other=0.0).to(tl.float32)
    for expert in range(num_experts):
        row, is_taken = row_of(place, token, expert, num_tokens)
        if is_taken:
            weight = tl.load(gate + token * gate_stride_s + expert * gate_stride_e)
            value = tl.load(rows + row * width + d, mask=d < width, other=0.0).to(tl.float32)
            if HAS_BIAS:
                value += tl.load(bias + expert * width + d, mask=d < width, other=0.0).to(tl.float32)
            grad_row = (weight * grad).to(grad_rows.dtype.element_ty)
            tl.store(grad_rows + row * width + d, grad_row, mask=d < width)
            tl.store(grad_gate + token * num_experts + expert, tl.sum(value * grad, axis=0))
        else:
            tl.store(grad_gate + token * num_experts + expert, 0.0)


@triton.jit
def rows_of_block(ends, expert, first):
    """First and last row of an expert from row `first` of it on."""
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    return start + first, tl.load(ends + expert)


@triton.jit
def activation_kernel(
    pre,
    bias,
    ends,
    hidden,
    width,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """hidden_RF = GELU(tanh) of pre_RF + bias, or SwiGLU of pre_R2F. A program a block of rows and columns of
    an expert."""
    expert = tl.program_id(1)
    start, end = rows_of_block(ends, expert, tl.program_id(0) * ROWS)
    r = start + tl.arange(0, ROWS)
    f = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r < end)[:, None] & (f < width)[None, :]
    out = r.to(tl.int64)[:, None] * width + f[None, :]
    if IS_GATED:
        pair = r.to(tl.int64)[:, None] * (2 * width) + f[None, :]
        u = tl.load(pre + pair, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(pre + pair + width, mask=inside, other=0.0).to(tl.float32)
        y = u * tl.sigmoid(u) * value
    else:
        u = tl.load(pre + out, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            u += tl.load(bias + expert * width + f, mask=f < width, other=0.0).to(tl.float32)[None, :]
        # (1 + tanh(z)) / 2 is sigmoid(2 z).
        y = u * tl.sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))
    tl.store(hidden + out, y.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward_kernel(
    grad,
    pre,
    bias,
    ends,
    grad_pre,
    grad_bias,
    width,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """grad_pre, and its sum over the rows of each expert. A program some columns of an expert."""
    expert = tl.program_id(1)
    start, end = rows_of_block(ends, expert, 0)
    f = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for first in range(start, end, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r < end)[:, None] & (f < width)[None, :]
        out = r.to(tl.int64)[:, None] * width + f[None, :]
        g = tl.load(grad + out, mask=inside, other=0.0).to(tl.float32)
        if IS_GATED:
            pair = r.to(tl.int64)[:, None] * (2 * width) + f[None, :]
            u = tl.load(pre + pair, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(pre + pair + width, mask=inside, other=0.0).to(tl.float32)
            s = tl.sigmoid(u)
            grad_u = g * value * (s + u * s * (1 - s))
            tl.store(grad_pre + pair, grad_u.to(grad_pre.dtype.element_ty), mask=inside)
            grad_value = g * u * s
            tl.store(grad_pre + pair + width, grad_value.to(grad_pre.dtype.element_ty), mask=inside)
        else:
            u = tl.load(pre + out, mask=inside, other=0.0).to(tl.float32)
            if HAS_BIAS:
                u += tl.load(bias + expert * width + f, mask=f < width, other=0.0).to(tl.float32)[None, :]
            s = tl.sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))
            slope = 1.5957691216057308 * (1 + 0.134145 * u * u)
            grad_u = g * (s + u * s * (1 - s) * slope)
            tl.store(grad_pre + out, grad_u.to(grad_pre.dtype.element_ty), mask=inside)
            total += tl.sum(grad_u, axis=0)
    if HAS_BIAS:
        tl.store(grad_bias + expert * width + f, total.to(grad_bias.dtype.element_ty), mask=f < width)


@triton.jit
def silu_kernel(x, y, count, BLOCK: tl.constexpr):
    """y = x * sigmoid(x), fp32 of any format."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x + i, mask=i < count, other=0.0).to(tl.float32)
    tl.store(y + i, u * tl.sigmoid(u), mask=i < count)


@triton.jit
def silu_backward_kernel(grad, x, grad_x, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x + i, mask=i < count, other=0.0).to(tl.float32)
    s = tl.sigmoid(u)
    grad_u = tl.load(grad + i, mask=i < count, other=0.0) * (s + u * s * (1 - s))
    tl.store(grad_x + i, grad_u.to(grad_x.dtype.element_ty), mask=i < count)


@triton.jit(do_not_specialize=["count"])
def select_kernel(scores, kth, mask, count, num_tokens, BLOCK: tl.constexpr):
    """mask_XP of the `count` largest scores of a row, `kth` the smallest; the first of equal ones. A program
    a row."""
    line = tl.program_id(0).to(tl.int64) * num_tokens
    smallest = tl.load(kth + tl.program_id(0))
    p = tl.arange(0, BLOCK)
    left = count
    for first in range(0, num_tokens, BLOCK):
        inside = first + p < num_tokens
        score = tl.load(scores + line + first + p, mask=inside, other=float("-inf"))
        left -= tl.sum((inside & (score > smallest)).to(tl.int32), axis=0)
    for first in range(0, num_tokens, BLOCK):
        inside = first + p < num_tokens
        score = tl.load(scores + line + first + p, mask=inside, other=float("-inf"))
        tied = (inside & (score == smallest)).to(tl.int32)
        is_taken = (score > smallest) | ((tied > 0) & (tl.cumsum(tied, axis=0) <= left))
        tl.store(mask + line + first + p, is_taken, mask=inside)
        left -= tl.sum(tied, axis=0)
