"""DDIM: DDPM's steps over fewer times, deterministic or with part of DDPM's noise."""

import itertools
import math

from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import FreshNoise, Predict, predict_data, split_at


def ddim(
    predict: Predict,
    objective: Objective,
    noise_BCHW: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Data x_0 after a call of the network at each of the falling `times` [T] (arXiv 2010.02502 eq. 12, 16).

    `eta` is the share of the standard deviation of DDPM's posterior that `fresh_noise(step)` brings in: 0 is
    deterministic.
    """
    x_t, all_times = noise_BCHW, times.tolist()
    for step, (t, t_next) in enumerate(itertools.pairwise(all_times)):
        x_0, noise, _ = split_at(predict, objective, x_t, t)
        (signal, level), (signal_next, level_next) = objective.levels(t), objective.levels(t_next)
        sigma = eta * level_next / level * math.sqrt(1 - (signal / signal_next) ** 2)
        x_t = signal_next * x_0 + math.sqrt(level_next**2 - sigma**2) * noise
        if fresh_noise is not None and sigma > 0:
            x_t = x_t + sigma * fresh_noise(step)
    return predict_data(predict, objective, x_t, all_times[-1])
