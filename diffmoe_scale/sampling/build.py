"""The sampler that the settings name, and the times that it is given."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.diffusion.ddpm import DDPM
from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.adams_bashforth import adams_bashforth
from diffmoe_scale.sampling.ancestral import ancestral
from diffmoe_scale.sampling.ddim import ddim
from diffmoe_scale.sampling.dopri5 import dopri5
from diffmoe_scale.sampling.dpm_solver import dpm_solver
from diffmoe_scale.sampling.euler import euler
from diffmoe_scale.sampling.heun import heun
from diffmoe_scale.sampling.sampler import FreshNoise, Sampler
from diffmoe_scale.sampling.schedule import sampling_times, shift_of, whole_steps


def build_sampler(
    sampling: SamplingConfig, *, fresh_noise: FreshNoise, is_any: Callable[[bool], bool]
) -> Sampler:
    """`is_any` is for adaptive steps: whether a truth on this rank holds on any rank that shares experts with
    it."""
    match sampling.sampler:
        case "euler":
            return partial(euler, fresh_share=sampling.fresh_noise, fresh_noise=fresh_noise)
        case "heun":
            return heun
        case "adams_bashforth":
            return adams_bashforth
        case "dpm_solver":
            return dpm_solver
        case "dopri5":
            return partial(dopri5, tolerance=sampling.tolerance, is_any=is_any)
        case "ddim":
            return partial(ddim, eta=sampling.fresh_noise, fresh_noise=fresh_noise)
        case "ancestral":
            return partial(ancestral, fresh_noise=fresh_noise)


def times_for(sampling: SamplingConfig, objective: Objective, *, num_tokens: int) -> Tensor:
    """The falling times [T] of the calls, or first and last time for adaptive steps. `num_tokens` are those
    of a picture."""
    if sampling.sampler == "dopri5":
        return sampling_times(1, end=1.0).new_tensor([1.0, objective.end_time])
    if isinstance(objective, DDPM) and sampling.sampler != "euler":
        return whole_steps(sampling.steps, of=objective.num_steps)
    shift = shift_of(sampling, num_tokens=num_tokens)
    return sampling_times(sampling.steps, end=objective.end_time, shift=shift)
