"""From noise to pictures by a scheduler of diffusers, at the times of training's samplers.

B samples, C H W latents.
"""

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any  # schedulers of diffusers, which carry no types

import torch
from torch import Tensor

from diffmoe_scale.sampling.schedule import (
    FEW_SHIFT,
    FEW_TOKENS,
    MANY_SHIFT,
    MANY_TOKENS,
    sampling_times,
)

NUM_STEPS = 1000
"""Of the diffusion process of DDPM."""


class Steps:
    """The steps of one call of a pipeline; `times` are the times t before each, and 0 after the last."""

    def __init__(
        self,
        scheduler: Any,
        diffusion: Mapping[str, Any],
        chosen: Mapping[str, Any],
        num_tokens: int,
        device: torch.device,
    ) -> None:
        """Sets the scheduler's times. `diffusion` is the transformer's; pictures have `num_tokens`."""
        self.scheduler, self.diffusion, self.chosen = scheduler, diffusion, chosen
        self.is_ddpm = diffusion["kind"] == "ddpm"
        if self.is_ddpm:
            scheduler.set_timesteps(chosen["steps"], device=device)
            self.times = [*((step + 1) / NUM_STEPS for step in scheduler.timesteps.tolist()), 0.0]
            return
        if "sigmas" in signature(scheduler.set_timesteps).parameters:
            end = diffusion["min_time"] if diffusion["prediction"] == "sample" else 0.0
            sigmas = sampling_times(chosen["steps"], end=end, shift=shift_by(chosen, num_tokens))
            scheduler.set_timesteps(sigmas=sigmas.numpy(), device=device)
        else:
            scheduler.set_timesteps(chosen["steps"], device=device)
        self.times = list(scheduler.sigmas.tolist())

    def __len__(self) -> int:
        return len(self.scheduler.timesteps)

    def move(self, step: int, value_BCHW: Tensor, x_BCHW: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """The noisy pictures after a step, by what the network said of those before. Of their noise the share
        `fresh_noise` is drawn anew, `noise(step + 1)`, but not after the last step."""
        (t, t_next), timestep = self.times[step : step + 2], self.scheduler.timesteps[step]
        share = self.chosen["fresh_noise"] if step < len(self) - 1 else 0.0
        if self.is_ddpm:
            noise_BCHW = value_BCHW[:, : x_BCHW.shape[1]]  # the rest is the variance
            eta = self.chosen["eta"] if step < len(self) - 1 else 0.0
            more = {"eta": eta, "variance_noise": noise(step + 1)} if eta else {}
            x_BCHW = self.scheduler.step(noise_BCHW, timestep, x_BCHW, **more, return_dict=False)[0]
            level = math.sqrt(1 - float(self.scheduler.alphas_cumprod[round(t_next * NUM_STEPS) - 1]))
        else:
            velocity_BCHW = value_BCHW
            if self.diffusion["prediction"] == "sample":
                velocity_BCHW = (x_BCHW - value_BCHW) / max(t, self.diffusion["min_time"])
            noise_BCHW, level = x_BCHW + (1 - t) * velocity_BCHW, t_next
            x_BCHW = self.scheduler.step(velocity_BCHW, timestep, x_BCHW, return_dict=False)[0]
        if not share:
            return x_BCHW
        drawn_BCHW = math.sqrt(1 - share**2) * noise_BCHW + share * noise(step + 1)
        return x_BCHW + level * (drawn_BCHW - noise_BCHW)


def shift_by(chosen: Mapping[str, Any], num_tokens: int) -> float:
    """The factor s that moves times t to s t / (1 + (s - 1) t)."""
    factor = float(chosen["shift_factor"])
    match chosen["shift"]:
        case "sd3":
            return factor * math.sqrt(num_tokens / FEW_TOKENS)
        case "flux":
            share = (num_tokens - FEW_TOKENS) / (MANY_TOKENS - FEW_TOKENS)
            return factor * math.exp(FEW_SHIFT + share * (MANY_SHIFT - FEW_SHIFT))
    return factor
