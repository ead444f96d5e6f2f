"""From noise to data along the learned path."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], t [B]) -> the network's output for it."""


def euler(
    predict: Predict,
    objective: Objective,
    noise_BCHW: Tensor,
    times: Tensor,
    *,
    fresh_share: float = 0.0,
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Data x_0 after one first-order step for each pair of falling `times` [T + 1], from 1 to 0.

    A step moves to the next time on the path through the predicted data and noise: for rectified flow that is
    Euler's x + (t' - t) v, for DDPM it is DDIM's deterministic step (arXiv 2010.02502 eq. 12). Of the
    predicted noise, `fresh_share` in amplitude is replaced by `fresh_noise(step)` [B, C, H, W]: with 1 each
    step noises the predicted data anew (the multistep sampling of consistency models, arXiv 2303.01469
    algorithm 1), which forgets what earlier steps got wrong.
    """
    x_t = noise_BCHW
    for step, (t, t_next) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        t_B = torch.full((x_t.shape[0],), t, device=x_t.device)
        x_0, noise = objective.split(predict(x_t, t_B), x_t, t_B)
        if fresh_noise is not None and fresh_share > 0:
            noise = math.sqrt(1 - fresh_share**2) * noise + fresh_share * fresh_noise(step)
        x_t = objective.add_noise(x_0, noise, torch.full_like(t_B, t_next))
    return x_t


def sampling_times(steps: int) -> Tensor:
    """`steps` + 1 equally spaced times from 1 to 0."""
    return torch.linspace(1.0, 0.0, steps + 1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)
