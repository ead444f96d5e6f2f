"""What all samplers share: one signature, and the moves of a batch along the path.

`sampler(predict, objective, noise_BCHW, times)` gives data x_0 [B, C, H, W]. It calls the network at falling
times from 1 to one not below `Objective.end_time`, and the data that the network predicts at the last time is
the result: a smaller time's velocity is not the flow's. A sample's steps never depend on the others of its
batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], t [B]) -> the network's output for it."""
Sampler = Callable[[Predict, Objective, Tensor, Tensor], Tensor]
"""(predict, objective, noise [B, C, H, W], times [T]) -> x_0 [B, C, H, W]."""
FreshNoise = Callable[[int], Tensor]
"""Number of a step (from 0) -> its own normal noise [B, C, H, W]."""


def split_at(
    predict: Predict, objective: Objective, x_t_BCHW: Tensor, time: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One call of the network: x_0 and noise that it sees in x_t, and the time as [B]."""
    t_B = torch.full((x_t_BCHW.shape[0],), time, device=x_t_BCHW.device)
    return *objective.split(predict(x_t_BCHW, t_B), x_t_BCHW, t_B), t_B


def velocity_at(predict: Predict, objective: Objective, x_t_BCHW: Tensor, time: float) -> Tensor:
    """One call of the network: dx/dt of rectified flow, noise - x_0."""
    x_0, noise, _ = split_at(predict, objective, x_t_BCHW, time)
    return noise - x_0


def predict_data(predict: Predict, objective: Objective, x_t_BCHW: Tensor, time: float) -> Tensor:
    """The last call of a sampler: x_0."""
    x_0, _, _ = split_at(predict, objective, x_t_BCHW, time)
    return x_0
