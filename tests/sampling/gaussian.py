"""Data of which everything is known: every pixel normal(MEAN, SPREAD), the network that knows it, and where
the exact flow leads."""

import math

import torch
from torch import Tensor

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.diffusion.objective import Objective, build_objective

MEAN, SPREAD = 0.4, 0.3
CPU = torch.device("cpu")


def noise(count: int = 4, *, size: int = 8) -> Tensor:
    return sample_noise(0, range(count), (1, size, size), CPU)[1]


class Gaussian:
    """The best network for this data, by its calls' times."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.objective: Objective = build_objective(config)
        self.times: list[list[float]] = []

    def __call__(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        self.times.append(t_B.tolist())
        if self.config.kind == "flow":
            signal_B, level_B = 1 - t_B, t_B
        else:
            signal_B, level_B = torch.tensor([self.objective.levels(t) for t in t_B.tolist()]).to(x_t).T
        signal, level = (values_B[:, None, None, None] for values_B in (signal_B, level_B))
        surprise = (x_t - signal * MEAN) / (signal**2 * SPREAD**2 + level**2)
        x_0, noise = MEAN + signal * SPREAD**2 * surprise, level * surprise
        if self.config.kind == "ddpm":
            return torch.cat([noise, torch.zeros_like(noise)], dim=1)
        return x_0 if self.config.prediction == "sample" else noise - x_0

    def exact(self, x_1: Tensor, *, end: float) -> Tensor:
        """x_0 that is predicted where the exact flow from `x_1` at t = 1 is at `end`; there at 0 itself."""
        signal, level = self.objective.levels(1.0)
        z = (x_1 - signal * MEAN) / math.hypot(signal * SPREAD, level)
        signal, level = self.objective.levels(end)
        return MEAN + signal * SPREAD**2 / math.hypot(signal * SPREAD, level) * z


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
