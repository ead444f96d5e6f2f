"""From noise to data along the learned path, by first-order steps."""

import itertools
import math

import torch
from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import FreshNoise, Predict, predict_data, split_at


def euler(
    predict: Predict,
    objective: Objective,
    noise_BCHW: Tensor,
    times: Tensor,
    *,
    fresh_share: float = 0.0,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Data x_0 after a call of the network at each of the falling `times` [T], of which the first is 1.

    A step moves to the next time on the path through the predicted data and noise: for rectified flow that is
    Euler's x + (t' - t) v, for DDPM it is DDIM's deterministic step (arXiv 2010.02502 eq. 12).

    Of the predicted noise, `fresh_share` in amplitude is replaced by `fresh_noise(step)` [B, C, H, W]: with 1
    each step noises the predicted data anew (the multistep sampling of consistency models, arXiv 2303.01469
    algorithm 1), which forgets what earlier steps got wrong.
    """
    x_t, all_times = noise_BCHW, times.tolist()
    for step, (t, t_next) in enumerate(itertools.pairwise(all_times)):
        x_0, noise, t_B = split_at(predict, objective, x_t, t)
        if fresh_noise is not None and fresh_share > 0:
            noise = math.sqrt(1 - fresh_share**2) * noise + fresh_share * fresh_noise(step)
        x_t = objective.add_noise(x_0, noise, torch.full_like(t_B, t_next))
    return predict_data(predict, objective, x_t, all_times[-1])
