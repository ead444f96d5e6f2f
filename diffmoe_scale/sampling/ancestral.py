"""DDPM's own sampling: each step draws from the learned posterior."""

import itertools

import torch
from torch import Tensor

from diffmoe_scale.diffusion.ddpm import DDPM
from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import FreshNoise, Predict, predict_data


def ancestral(
    predict: Predict,
    objective: Objective,
    noise_BCHW: Tensor,
    times: Tensor,
    *,
    fresh_noise: FreshNoise,
) -> Tensor:
    """Data x_0 after a call of the network at each of the falling `times` [T].

    A step draws x_t' from the normal distribution of the posterior's mean, for the predicted x_0, and the
    learned variance (arXiv 2102.09672 sections 2.1, 3.1 and 4, as in DiT); the last prediction of x_0 is
    taken as it is.
    """
    assert isinstance(objective, DDPM), "only its networks learn a variance"
    x_t, all_times = noise_BCHW, times.tolist()
    for step, (t, t_next) in enumerate(itertools.pairwise(all_times)):
        t_B = torch.full((x_t.shape[0],), t, device=x_t.device)
        mean, variance = objective.posterior(predict(x_t, t_B), x_t, t_B, torch.full_like(t_B, t_next))
        x_t = mean + variance.sqrt() * fresh_noise(step)
    return predict_data(predict, objective, x_t, all_times[-1])
