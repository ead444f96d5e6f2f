"""The capacity predictor: which experts take a token, from that token only."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CapacityPredictor(nn.Module):
    """Logits of which experts take a token, from that token only (DiffMoE eq. 10), and the thresholds they
    are held against.

    The gradient stops at the token: the predictor never changes the diffusion model.
    """

    expert_threshold_E: Tensor
    threshold_steps: Tensor

    def __init__(
        self,
        *,
        width: int,
        num_experts: int,
        decay: float,
        is_bias_corrected: bool,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.is_bias_corrected = is_bias_corrected
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, num_experts)
        # Model state, but no weight: checkpoints hold them, the weight EMA must not average them.
        self.register_buffer("expert_threshold_E", torch.zeros(num_experts))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """nn.Linear's own distribution (both linears have the token's width as fan-in); thresholds at 0."""
        bound = self.hidden.in_features**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.expert_threshold_E.zero_()
        self.threshold_steps.zero_()

    def forward(self, x_SD: Tensor) -> Tensor:
        """Logits [S, E] in fp32, whatever the format of the model: they decide, so rounding would move
        tokens."""
        hidden_SD = F.silu(
            F.linear(x_SD.detach().float(), self.hidden.weight.float(), self.hidden.bias.float())
        )
        return F.linear(hidden_SD, self.output.weight.float(), self.output.bias.float())

    def threshold(self) -> Tensor:
        """tau_E of DiffMoE eq. 14: the moving average, by config divided by 1 - decay^n because it began at
        0."""
        if not self.is_bias_corrected:
            return self.expert_threshold_E
        weight_of_start = self.decay ** self.threshold_steps.double()
        return torch.where(
            self.threshold_steps > 0, self.expert_threshold_E / (1 - weight_of_start), 0.0
        ).float()

    @torch.no_grad()
    def update_threshold(self, kth_probability_E: Tensor) -> None:
        """tau <- decay * tau + (1 - decay) * q (DiffMoE eq. 17)."""
        self.expert_threshold_E.lerp_(kth_probability_E.float(), 1 - self.decay)
        self.threshold_steps += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # module.to(bfloat16) casts buffers too, and a moving average in bf16 stops moving.
        before_E = self.expert_threshold_E
        super()._apply(fn, recurse)
        moved_E = self.expert_threshold_E
        self.expert_threshold_E = moved_E.float() if before_E.is_meta else before_E.to(moved_E.device)
        return self


def predictor_loss(prediction_SE: Tensor, mask_SE: Tensor) -> Tensor:
    """Mean binary cross entropy between logits and what each expert took (DiffMoE eq. 11-12)."""
    return F.binary_cross_entropy_with_logits(prediction_SE, mask_SE.float())
