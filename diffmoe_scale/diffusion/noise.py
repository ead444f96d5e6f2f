"""Random numbers that depend on the sample alone, not on the layout of ranks or the place in a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each global sample number a uniform number in [0, 1) and standard normal noise: [B] and [B,
    *shape]."""
    uniform_B = torch.empty(len(indices), device=device)
    noise = torch.empty((len(indices), *shape), device=device)
    generator = torch.Generator(device)
    for row, index in enumerate(indices):
        # One odd multiplier spreads the pair over 64 bits; neighbouring seeds of torch's generators are
        # independent streams.
        generator.manual_seed((seed * 0x9E3779B97F4A7C15 + index) % 2**63)
        uniform_B[row] = torch.rand((), generator=generator, device=device)
        noise[row] = torch.randn(shape, generator=generator, device=device)
    return uniform_B, noise
