"""Second-order steps with two calls of the network each."""

import itertools

from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import Predict, predict_data, velocity_at


def heun(predict: Predict, objective: Objective, noise_BCHW: Tensor, times: Tensor) -> Tensor:
    """Data x_0 of rectified flow after 2 T - 1 calls of the network at the falling `times` [T].

    A step goes with the mean of the velocities at its two ends, the second one found by an Euler step
    (arXiv 2206.00364 algorithm 1). Each of the inner times is called twice.
    """
    x_t, all_times = noise_BCHW, times.tolist()
    for t, t_next in itertools.pairwise(all_times):
        velocity = velocity_at(predict, objective, x_t, t)
        velocity_next = velocity_at(predict, objective, x_t + (t_next - t) * velocity, t_next)
        x_t = x_t + (t_next - t) / 2 * (velocity + velocity_next)
    return predict_data(predict, objective, x_t, all_times[-1])
