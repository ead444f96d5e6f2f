"""The feed-forward network of a DiT block: dense in some blocks, beside the experts in others, and the model
of an expert."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Linear, GELU(tanh), linear, with biases; or SwiGLU without. `hidden` is the width between the two."""

    def __init__(self, width: int, hidden: int, *, is_gated: bool) -> None:
        super().__init__()
        self.is_gated = is_gated
        self.w_in = nn.Linear(width, 2 * hidden if is_gated else hidden, bias=not is_gated)
        self.w_out = nn.Linear(hidden, width, bias=not is_gated)

    def initialize(self, generator: torch.Generator) -> None:
        biases = [] if self.is_gated else [self.w_in.bias, self.w_out.bias]
        initialize_feed_forward(
            self.w_in.weight, self.w_out.weight, biases, is_gated=self.is_gated, generator=generator
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w_out(activate(self.w_in(x), is_gated=self.is_gated))
        return y


def activate(hidden: Tensor, *, is_gated: bool) -> Tensor:
    """GELU(tanh), or SwiGLU of [gate, value] halves of the last dimension."""
    if not is_gated:
        return F.gelu(hidden, approximate="tanh")
    gate, value = hidden.chunk(2, dim=-1)
    return F.silu(gate) * value


@torch.no_grad()
def initialize_feed_forward(
    w_in: Tensor, w_out: Tensor, biases: Sequence[Tensor], *, is_gated: bool, generator: torch.Generator
) -> None:
    """DiT's: Xavier uniform for each matrix (gate and value of SwiGLU are two), zero biases; drawn in fp32 on
    CPU."""
    for matrix in (*w_in.chunk(2 if is_gated else 1), w_out):
        matrix.copy_(nn.init.xavier_uniform_(torch.empty(matrix.shape), generator=generator))
    for bias in biases:
        bias.zero_()
