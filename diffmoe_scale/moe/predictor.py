"""The capacity predictor: which experts take a token, from that token only.

Letters beside the package's: H its hidden width, n tokens of a sample that it learns from.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.moe.fused_silu import silu_fp32


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
        hidden_width: int,
        num_experts: int,
        decay: float,
        is_bias_corrected: bool,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.is_bias_corrected = is_bias_corrected
        self.hidden = nn.Linear(width, hidden_width)
        self.output = nn.Linear(hidden_width, num_experts)
        # Model state, but no weight: checkpoints hold them, the weight EMA must not average them.
        self.register_buffer("expert_threshold_E", torch.zeros(num_experts))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """nn.Linear's own distribution, by the fan-in of each linear; thresholds at 0."""
        for linear in (self.hidden, self.output):
            bound = linear.in_features**-0.5
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.expert_threshold_E.zero_()
        self.threshold_steps.zero_()

    def forward(self, x_SD: Tensor) -> Tensor:
        """Logits [S, E] in fp32, whatever the format of the model.

        The hidden layer is a product in the model's format, added up in fp32: bf16 weights and tokens are
        exact there, and only its result is rounded. All behind it is fp32.
        """
        hidden_SH = silu_fp32(self.hidden(x_SD.detach()))
        return F.linear(hidden_SH, self.output.weight.float(), self.output.bias.float())

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

    @torch.no_grad()
    def set_threshold(self, threshold_E: Tensor) -> None:
        """Have `threshold` answer this, and training go on from it."""
        self.threshold_steps.clamp_(min=1)
        weight = 1 - self.decay ** int(self.threshold_steps) if self.is_bias_corrected else 1.0
        self.expert_threshold_E.copy_(weight * threshold_E)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # module.to(bfloat16) casts buffers too, and a moving average in bf16 stops moving.
        before_E = self.expert_threshold_E
        super()._apply(fn, recurse)
        moved_E = self.expert_threshold_E
        self.expert_threshold_E = moved_E.float() if before_E.is_meta else before_E.to(moved_E.device)
        return self


def predictor_hidden_width(width: int, share: float) -> int:
    """Of a model of `width`, for `moe.predictor_width` `share`. Raises ValueError where nothing is left."""
    hidden_width = round(share * width)
    if hidden_width < 1:
        raise ValueError(
            f"moe.predictor_width is {share}, which leaves nothing of model.width {width}; choose at least "
            f"{1 / width:.4g}"
        )
    return hidden_width


def spread_tokens(
    share: float, *, num_samples: int, num_tokens: int, first: int, device: torch.device
) -> Tensor:
    """Places [S'] of a share of the tokens of every sample, one token at least, equally far apart.

    They begin at token `first` of the first sample, one later in the next sample, and so on, so that over
    samples and steps no place is preferred. Needs no random numbers: a run that resumes draws the same.
    """
    tokens_a_sample = num_tokens // num_samples
    count = max(1, round(share * tokens_a_sample))
    start_B1 = torch.arange(num_samples, device=device).unsqueeze(1)
    place_n = torch.arange(count, device=device) * tokens_a_sample // count
    place_Bn = (place_n + start_B1 + first) % tokens_a_sample
    return (place_Bn + start_B1 * tokens_a_sample).flatten()


def predictor_loss(prediction_SE: Tensor, mask_SE: Tensor) -> Tensor:
    """Mean binary cross entropy between logits and what each expert took (DiffMoE eq. 11-12)."""
    return F.binary_cross_entropy_with_logits(prediction_SE, mask_SE.float())
