"""Second-order steps with one call of the network each, from the velocities of two times."""

import itertools

from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import Predict, predict_data, velocity_at


def adams_bashforth(predict: Predict, objective: Objective, noise_BCHW: Tensor, times: Tensor) -> Tensor:
    """Data x_0 of rectified flow after a call of the network at each of the falling `times` [T].

    The velocity is taken as a line through its last two values (Adams-Bashforth of order 2, with steps of any
    length); the first step is Euler's.
    """
    x_t, all_times = noise_BCHW, times.tolist()
    velocity_before: Tensor | None = None
    step_before = 0.0
    for t, t_next in itertools.pairwise(all_times):
        step = t_next - t
        velocity = velocity_at(predict, objective, x_t, t)
        slope = 0.0 if velocity_before is None else (velocity - velocity_before) / step_before
        x_t = x_t + step * (velocity + step / 2 * slope)
        velocity_before, step_before = velocity, step
    return predict_data(predict, objective, x_t, all_times[-1])
