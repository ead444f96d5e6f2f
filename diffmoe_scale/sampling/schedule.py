"""The times at which a sampler calls the network."""

import torch
from torch import Tensor


def sampling_times(steps: int, *, end: float) -> Tensor:
    """`steps` falling times [T] from 1 to at least `end`, equally spaced.

    They are 1, 1 - 1 / steps, ..., 1 / steps while 1 / steps is not below `end` (Objective.end_time); more
    steps lie closer, from 1 to `end`.
    """
    if 1 / steps >= end:
        return torch.linspace(1.0, 0.0, steps + 1)[:-1]
    return torch.linspace(1.0, end, steps)
