"""The capacity predictor: which experts take a token, from that token only.

Letters beside the package's: H its hidden width, n tokens of a sample that it learns from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.moe.fused_silu import silu_fp32
from diffmoe_scale.moe.state import MovingThreshold


class CapacityPredictor(MovingThreshold):
    """Logits of which experts take a token, from that token only (DiffMoE eq. 10), and the thresholds they
    are held against.

    The gradient stops at the token: the predictor never changes the diffusion model.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden_width: int,
        num_experts: int,
        decay: float,
        is_bias_corrected: bool,
    ) -> None:
        super().__init__(num_experts, decay=decay, is_bias_corrected=is_bias_corrected)
        self.hidden = nn.Linear(width, hidden_width)
        self.output = nn.Linear(hidden_width, num_experts)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """nn.Linear's own distribution, by the fan-in of each linear; thresholds at 0."""
        for linear in (self.hidden, self.output):
            bound = linear.in_features**-0.5
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.reset()

    def forward(self, x_SD: Tensor) -> Tensor:
        """Logits [S, E] in fp32, whatever the format of the model.

        The hidden layer is a product in the model's format, added up in fp32: bf16 weights and tokens are
        exact there, and only its result is rounded. All behind it is fp32.
        """
        hidden_SH = silu_fp32(self.hidden(x_SD.detach()))
        return F.linear(hidden_SH, self.output.weight.float(), self.output.bias.float())


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
