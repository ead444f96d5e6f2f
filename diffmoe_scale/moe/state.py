"""State of routers that is no weight: moved once an optimizer step, kept by checkpoints, left out of the
weight average.

X what a state is of: experts, or 1 for all.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class RouterState(nn.Module):
    """A module whose own buffers stay fp32 in a model of any format: a moving average in bf16 stops
    moving."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # module.to(bfloat16) casts buffers too.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, kept in before.items():
            moved = self._buffers[name]
            assert kept is not None and moved is not None
            if kept.is_floating_point():
                self._buffers[name] = moved.float() if kept.is_meta else kept.to(moved.device)
        return self


class MovingThreshold(RouterState):
    """tau_X of DiffMoE eq. 14 and 17: the moving average, one step each optimizer step, of the smallest value
    that was chosen."""

    expert_threshold_E: Tensor
    threshold_steps: Tensor

    def __init__(self, count: int, *, decay: float, is_bias_corrected: bool) -> None:
        super().__init__()
        self.decay = decay
        self.is_bias_corrected = is_bias_corrected
        self.register_buffer("expert_threshold_E", torch.zeros(count))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def reset(self) -> None:
        """Back to what it was before the first step."""
        self.expert_threshold_E.zero_()
        self.threshold_steps.zero_()

    def threshold(self) -> Tensor:
        """[X]: the average, by config divided by 1 - decay^n because it began at 0."""
        if not self.is_bias_corrected:
            return self.expert_threshold_E
        weight_of_start = self.decay ** self.threshold_steps.double()
        return torch.where(
            self.threshold_steps > 0, self.expert_threshold_E / (1 - weight_of_start), 0.0
        ).float()

    @torch.no_grad()
    def update_threshold(self, value_X: Tensor) -> None:
        """tau <- decay * tau + (1 - decay) * value (DiffMoE eq. 17)."""
        self.expert_threshold_E.lerp_(value_X.float(), 1 - self.decay)
        self.threshold_steps += 1

    @torch.no_grad()
    def set_threshold(self, threshold_X: Tensor) -> None:
        """Have `threshold` answer this, and training go on from it."""
        self.threshold_steps.clamp_(min=1)
        weight = 1 - self.decay ** int(self.threshold_steps) if self.is_bias_corrected else 1.0
        self.expert_threshold_E.copy_(weight * threshold_X)


class BalanceBias(RouterState):
    """A number for each expert that is added to its scores when tokens choose, and that rises while it gets
    fewer tokens than the mean (arXiv 2408.15664)."""

    bias_E: Tensor

    def __init__(self, count: int, *, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias_E", torch.zeros(count))

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """b <- b + rate * sign(mean load - load), for the tokens of all experts in one optimizer step. Loads
        are whole numbers, so equal ones are seen as equal in every layout of ranks."""
        self.bias_E += self.rate * (load_E.sum() - len(load_E) * load_E).sign().float()
