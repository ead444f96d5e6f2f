"""How many experts a token gets: the capacity in training and its schedule, the predictor, its dynamic
thresholds, and the average over layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.nn.generator import named_generator

if TYPE_CHECKING:
    from diffmoe_scale.config.moe import MoEConfig
    from diffmoe_scale.moe.layer import MoELayer
    from diffmoe_scale.moe.routing import Routing


def training_capacity(config: MoEConfig, step: int | None) -> float:
    """C of DiffMoE eq. 6 at optimizer step `step` (the first is 1): linear from `moe.capacity_start`, in step
    1, to `moe.capacity` after `moe.capacity_steps`. None is outside of training: `moe.capacity`."""
    if step is None or step > config.capacity_steps:
        return config.capacity
    return (
        config.capacity_start + (config.capacity - config.capacity_start) * (step - 1) / config.capacity_steps
    )


class CapacityPredictor(nn.Module):
    """Logits of which experts take a token, from that token alone (DiffMoE eq. 10), and the thresholds they
    are held against.

    The gradient stops at the token: the predictor watches the diffusion model and never changes it.
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
        seed: int,
        layer_index: int,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.is_bias_corrected = is_bias_corrected
        self.hidden = nn.utils.skip_init(nn.Linear, width, width)
        self.output = nn.utils.skip_init(nn.Linear, width, num_experts)
        generator = named_generator(seed, layer_index, "predictor")
        for parameter in self.parameters():
            # nn.Linear's own distribution; both linears have fan-in `width`.
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
        # Model state, but no weight: checkpoints hold them, the weight EMA must not average them.
        self.register_buffer("expert_threshold_E", torch.zeros(num_experts))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

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
        threshold_E = self.expert_threshold_E
        super()._apply(fn, recurse)
        self.expert_threshold_E = threshold_E.to(self.expert_threshold_E.device)
        return self


def predictor_loss(prediction_SE: Tensor, mask_SE: Tensor) -> Tensor:
    """Mean binary cross entropy between the predictor's logits and what each expert took (DiffMoE eq. 11-12)."""
    return F.binary_cross_entropy_with_logits(prediction_SE, mask_SE.float())


@torch.no_grad()
def update_thresholds(
    layers: Sequence[MoELayer], kth_probability_LE: Tensor, group: dist.ProcessGroup | None
) -> None:
    """Move the thresholds of all layers by the K-th probabilities of one optimizer step, averaged over
    `group`.

    Once a step and outside of forward. One collective over `group` (None: this process alone). Layers whose
    router has no predictor come with E = 0 and are left alone.
    """
    if kth_probability_LE.numel() == 0:
        return
    mean_LE = kth_probability_LE.float().clone()
    if group is not None and group.size() > 1:
        dist.all_reduce(mean_LE, group=group)
        mean_LE /= group.size()
    for layer, kth_probability_E in zip(layers, mean_LE, strict=True):
        layer.router.predictor.update_threshold(kth_probability_E)


def average_capacity(routings: Sequence[Routing]) -> Tensor:
    """Capacity of a forward pass, a scalar: the mean over experts and MoE layers (DiffMoE eq. 9)."""
    return torch.stack([routing.metrics["capacity"] for routing in routings]).mean()
