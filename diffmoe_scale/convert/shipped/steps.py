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
    whole_steps,
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
            self.times = [*self._ddpm_times(device), 0.0]
            return
        if "sigmas" in signature(scheduler.set_timesteps).parameters:
            end = diffusion["min_time"] if diffusion["prediction"] == "sample" else 0.0
            sigmas = sampling_times(chosen["steps"], end=end, shift=shift_by(chosen, num_tokens))
            scheduler.set_timesteps(sigmas=sigmas.numpy(), device=device)
        else:
            scheduler.set_timesteps(chosen["steps"], device=device)
        self.times = list(scheduler.sigmas.tolist())

    def __len__(self) -> int:
        return len(self.times) - 1

    @property
    def is_ddim(self) -> bool:
        return type(self.scheduler).__name__ == "DDIMScheduler"

    def _ddpm_times(self, device: torch.device) -> list[float]:
        """Of DDIM those of training's samplers; of another scheduler its own."""
        count = self.chosen["steps"]
        if self.is_ddim and self.chosen["spacing"] == "whole":
            return whole_steps(count, of=NUM_STEPS).tolist()
        if self.is_ddim:
            return sampling_times(count, end=1 / NUM_STEPS).tolist()
        self.scheduler.set_timesteps(count, device=device)
        return [(step + 1) / NUM_STEPS for step in self.scheduler.timesteps.tolist()]

    def move(self, step: int, value_BCHW: Tensor, x_BCHW: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """The noisy pictures after a step, by what the network said of those before. Of their noise the share
        `fresh_noise` is drawn anew, `noise(step + 1)`, but not after the last step."""
        share = self.chosen["fresh_noise"] if step < len(self) - 1 else 0.0
        t, t_next = self.times[step : step + 2]
        if self.is_ddpm:
            noise_BCHW, level = value_BCHW[:, : x_BCHW.shape[1]], self._levels(t_next)[1]
        else:
            value_BCHW = self._velocity(value_BCHW, x_BCHW, t)
            noise_BCHW, level = x_BCHW + (1 - t) * value_BCHW, t_next
        if self.is_ddpm and self.is_ddim:
            x_BCHW = self._ddim_step(step, noise_BCHW, x_BCHW, noise)
        else:
            timestep = self.scheduler.timesteps[step]
            x_BCHW = self.scheduler.step(value_BCHW, timestep, x_BCHW, return_dict=False)[0]
        if not share:
            return x_BCHW
        drawn_BCHW = math.sqrt(1 - share**2) * noise_BCHW + share * noise(step + 1)
        return x_BCHW + level * (drawn_BCHW - noise_BCHW)

    def _velocity(self, value_BCHW: Tensor, x_BCHW: Tensor, t: float) -> Tensor:
        if self.diffusion["prediction"] == "velocity":
            return value_BCHW
        return (x_BCHW - value_BCHW) / max(t, self.diffusion["min_time"])

    def _levels(self, t: float) -> tuple[float, float]:
        """Signal and noise in x at time t."""
        alpha_bar = float(self.scheduler.alphas_cumprod[round(t * NUM_STEPS) - 1]) if t > 0 else 1.0
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def _ddim_step(
        self, step: int, noise_BCHW: Tensor, x_BCHW: Tensor, noise: Callable[[int], Tensor]
    ) -> Tensor:
        """arXiv 2010.02502 eq. 12 and 16. DDIMScheduler's own `step` goes 1000 // steps down wherever the
        next time is."""
        signal, level = self._levels(self.times[step])
        signal_next, level_next = self._levels(self.times[step + 1])
        x_0 = (x_BCHW - level * noise_BCHW) / signal
        sigma = self.chosen["eta"] * level_next / level * math.sqrt(1 - (signal / signal_next) ** 2)
        x_BCHW = signal_next * x_0 + math.sqrt(level_next**2 - sigma**2) * noise_BCHW
        return x_BCHW + sigma * noise(step + 1) if sigma > 0 else x_BCHW


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
