"""The times at which a sampler calls the network."""

import math

import torch
from torch import Tensor

from diffmoe_scale.config.sampling import SamplingConfig

FEW_TOKENS, MANY_TOKENS = 256, 4096
"""Of pictures of 256 and 1024 pixels in SD3 and Flux."""
FEW_SHIFT, MANY_SHIFT = 0.5, 1.15
"""Flux's logarithm of s for them."""


def sampling_times(steps: int, *, end: float, shift: float = 1.0) -> Tensor:
    """`steps` falling times [T] from 1 to at least `end` (Objective.end_time), equally spaced before they are
    shifted.

    They are 1, 1 - 1 / steps, ..., 1 / steps while the last is not below `end`; more steps lie closer, from 1
    to `end`. A shift s moves t to s t / (1 + (s - 1) t) (SD3, arXiv 2403.03206 eq. 23).
    """
    if shift_time(1 / steps, shift) >= end:
        return shift_times(torch.linspace(1.0, 0.0, steps + 1)[:-1], shift)
    times = shift_times(torch.linspace(1.0, shift_time(end, 1 / shift), steps), shift)
    return times.clamp(min=end)  # there and back rounds


def shift_time(t: float, shift: float) -> float:
    return shift * t / (1 + (shift - 1) * t)


def shift_times(times: Tensor, shift: float) -> Tensor:
    exact = times.double()  # 1 must stay 1
    return times if shift == 1 else (shift * exact / (1 + (shift - 1) * exact)).float()


def shift_of(sampling: SamplingConfig, *, num_tokens: int) -> float:
    """s for a picture of so many tokens: more of them show more of the layout through the same noise."""
    match sampling.shift:
        case "none":
            return 1.0
        case "constant":
            return sampling.shift_factor
        case "sd3":
            return sampling.shift_factor * math.sqrt(num_tokens / FEW_TOKENS)
        case "flux":
            share = (num_tokens - FEW_TOKENS) / (MANY_TOKENS - FEW_TOKENS)
            return sampling.shift_factor * math.exp(FEW_SHIFT + share * (MANY_SHIFT - FEW_SHIFT))


def whole_steps(steps: int, *, of: int) -> Tensor:
    """`steps` falling times [T] on the grid 1 / `of`, from 1 to 1 / `of`, as equally spaced as it allows
    (ADM, DiT)."""
    return (torch.linspace(of, 1, steps, dtype=torch.float64).round() / of).float()
