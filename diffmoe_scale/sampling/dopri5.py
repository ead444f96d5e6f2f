"""Adaptive steps of order 5 with an estimate of their error (Dormand and Prince), for each sample its own.

Written here because a package's solver ends when the samples of its own process are done: ranks that share
experts would then call the network unequally often and wait for each other for ever. torchdiffeq takes one
step for all samples of a batch besides, so that a picture would depend on its neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffmoe_scale.config.check import RunError
from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import Predict

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Of the velocities before; the last row is the step itself, so its velocity begins the next one."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""The step of order 5 less that of order 4."""
FIRST_STEP, SAFETY, SHORTEST, LONGEST = 0.05, 0.9, 0.2, 5.0
"""The first step in t, and by how much the next may be shorter or longer than the one before."""
MAX_STEPS = 1000


def dopri5(
    predict: Predict,
    objective: Objective,
    noise_BCHW: Tensor,
    times: Tensor,
    *,
    tolerance: float = 1e-3,
    is_any: Callable[[bool], bool] = bool,
) -> Tensor:
    """Data x_0 of rectified flow: from the first to the last of the falling `times` in as few steps as keep
    the estimated error of each below `tolerance` * (1 + |x|), as a root mean square over the sample.

    Samples that have arrived are called on, unchanged, until all have: `is_any` says of a truth on this rank
    whether it holds on any rank that must call the network as often. Raises: RunError after 1000 steps.
    """
    end, t_B = float(times[-1]), torch.full((len(noise_BCHW),), float(times[0]), dtype=torch.float64)
    step_B = torch.full_like(t_B, FIRST_STEP)
    x_t, velocity = noise_BCHW, _velocity(predict, objective, noise_BCHW, t_B)
    is_going_B = t_B > end
    for _ in range(MAX_STEPS):
        if not is_any(bool(is_going_B.any())):
            t_last_B = t_B.to(x_t)
            return objective.split(predict(x_t, t_last_B), x_t, t_last_B)[0]
        step_B = step_B.minimum(t_B - end)
        x_next, velocities = _try_step(predict, objective, x_t, velocity, t_B, step_B, end)
        error_B = _error(x_t, x_next, velocities, step_B, tolerance)
        # A sample that is not finite is not made better by shorter steps.
        is_lost_B = ~error_B.isfinite()
        is_taken_B = is_going_B & ((error_B <= 1) | is_lost_B)
        is_taken_B1 = is_taken_B.to(x_t.device)[:, None, None, None]
        x_t = torch.where(is_taken_B1, x_next, x_t)
        velocity = torch.where(is_taken_B1, velocities[-1], velocity)
        t_B = torch.where(is_taken_B, t_B - step_B, t_B)
        t_B = torch.where((t_B - end < 1e-9) | is_lost_B, end, t_B)
        is_going_B = t_B > end
        factor_B = (SAFETY * error_B.clamp(min=1e-10) ** -0.2).clamp(SHORTEST, LONGEST)
        step_B = torch.where(is_lost_B, step_B, step_B * factor_B)
    raise RunError(
        f"sampling.sampler 'dopri5' took {MAX_STEPS} steps and is not at the end; raise sampling.tolerance "
        f"({tolerance:g}), or choose another sampler, such as heun"
    )


def _velocity(predict: Predict, objective: Objective, x_t: Tensor, t_B: Tensor) -> Tensor:
    t_B = t_B.to(x_t)
    x_0, noise = objective.split(predict(x_t, t_B), x_t, t_B)
    return noise - x_0


def _try_step(
    predict: Predict,
    objective: Objective,
    x_t: Tensor,
    velocity: Tensor,
    t_B: Tensor,
    step_B: Tensor,
    end: float,
) -> tuple[Tensor, list[Tensor]]:
    """x after a step down in time, and the velocities of its seven stages."""
    velocities = [velocity]
    step_B111 = step_B.to(x_t)[:, None, None, None]
    for node, weights in zip(NODES, WEIGHTS, strict=True):
        x_stage = x_t - step_B111 * _sum(weights, velocities)
        # Rounding must not lead below the end, where the velocity is another one.
        stage_B = (t_B - node * step_B).clamp(min=end)
        velocities.append(_velocity(predict, objective, x_stage, stage_B))
    return x_stage, velocities


def _error(x_t: Tensor, x_next: Tensor, velocities: list[Tensor], step_B: Tensor, tolerance: float) -> Tensor:
    """The estimated error of each sample [B] in units of the tolerance, on the CPU."""
    error = step_B.to(x_t)[:, None, None, None] * _sum(ERROR, velocities)
    allowed = tolerance * (1 + x_t.abs().maximum(x_next.abs()))
    return (error / allowed).double().square().flatten(1).mean(1).sqrt().cpu()


def _sum(weights: tuple[float, ...], velocities: list[Tensor]) -> Tensor:
    total = weights[0] * velocities[0]
    for weight, velocity in zip(weights[1:], velocities[1:], strict=True):
        if weight != 0:
            total = total + weight * velocity
    return total
