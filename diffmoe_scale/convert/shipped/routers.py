"""Routers at inference: every rule by which experts choose, on one device.

B samples, S tokens of all samples, D width, E experts, P tokens of a pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.moe.selection import select_counted, select_experts, select_top, tokens_per_expert

RULES = ("threshold", "threshold_count", "interval", "static")


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """The experts of a model, as its config.json has them."""

    num_experts: int
    blocks: Sequence[int]
    width: int
    """Of one expert."""
    shared_width: int
    """Of the network that every token passes through; 0 without one."""
    layout: str
    """`stacked`: one tensor for all experts; `separate`: a linear layer for each."""
    router: str
    gate: str
    router_input: str
    pool: str
    capacity: float
    capacity_by_resolution: Sequence[Sequence[float]]
    """Pairs of a resolution and the capacity of pictures of at most the pixels of its square."""
    top_k: int
    threshold_decay: float
    threshold_bias_correction: bool
    thresholds: Sequence[Sequence[float]]
    """The moving averages, by block with experts and by expert. They are no tensors: a model that is cast to
    bf16 would lose bits that decide."""
    threshold_steps: Sequence[int]
    """How often each was moved."""
    predictor_width: int = 0
    """Of the capacity predictor's hidden layer; 0 is the model's."""


@dataclass(frozen=True)
class Choice:
    """How experts choose: `threshold`, by the predictor over its threshold; `threshold_count`, by that count
    and the gate's score; `interval`, by the predictor over `gamma`; `static`, each the top K for `capacity`
    (0: that of training)."""

    rule: str = "threshold"
    gamma: float = 0.5
    capacity: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"selection is {self.rule!r}; expected one of {', '.join(RULES)}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma!r}; expected 0 to 1")
        if self.capacity and self.rule != "static":
            raise ValueError(
                f"capacity is {self.capacity} but selection is {self.rule!r}, on which it has no effect; "
                "expected selection 'static'"
            )


@dataclass(frozen=True)
class RouterInput:
    """What a router may read beside its tokens."""

    num_samples: int
    unmodulated_SD: Tensor
    time_BD: Tensor
    choice: Choice
    image_pixels: float


class Predictor(nn.Module):
    """Logits [S, E] of which experts take a token (DiffMoE eq. 10), in fp32."""

    def __init__(self, width: int, hidden_width: int, num_experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden_width)
        self.output = nn.Linear(hidden_width, num_experts)

    def forward(self, x_SD: Tensor) -> Tensor:
        hidden_SD = F.silu(F.linear(x_SD.float(), self.hidden.weight.float(), self.hidden.bias.float()))
        return F.linear(hidden_SD, self.output.weight.float(), self.output.bias.float())


class Router(nn.Module):
    """Which expert takes which token [S, E], and the scores [S, E] that weigh their answers; in fp32."""

    def __init__(self, settings: ExpertSettings, width: int, *, number: int) -> None:
        """`number` counts the blocks with experts."""
        super().__init__()
        self.settings, self.number = settings, number
        self.weight = nn.Parameter(torch.zeros(settings.num_experts, width))
        is_decoupled, has_predictor = settings.router_input == "decoupled", settings.router == "diffmoe"
        self.time_weight = nn.Parameter(torch.zeros_like(self.weight)) if is_decoupled else None
        hidden_width = settings.predictor_width or width
        self.predictor = Predictor(width, hidden_width, settings.num_experts) if has_predictor else None

    def forward(self, x_SD: Tensor, inputs: RouterInput) -> tuple[Tensor, Tensor]:
        scores_SE = self.scores(self.logits(x_SD, inputs))
        if scores_SE.isnan().any():
            raise ValueError("a router got NaN scores: its input or its weights are not finite")
        return self.select(scores_SE, x_SD, inputs), scores_SE

    def logits(self, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        if self.time_weight is None:
            return F.linear(x_SD.float(), self.weight.float())
        time_BE = F.linear(inputs.time_BD.float(), self.time_weight.float())
        token_SE = F.linear(inputs.unmodulated_SD.float(), self.weight.float())
        return (token_SE.unflatten(0, (inputs.num_samples, -1)) + time_BE.unsqueeze(1)).flatten(0, 1)

    def scores(self, logits_SE: Tensor) -> Tensor:
        match self.settings.gate:
            case "softmax":
                return logits_SE.softmax(dim=-1)
            case "sigmoid":
                return logits_SE.sigmoid()
        return logits_SE

    def select(self, scores_SE: Tensor, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        choice, router = inputs.choice, self.settings.router
        if self.predictor is None and choice.rule != "static":
            raise ValueError(
                f"selection is {choice.rule!r}, but router {router!r} has no capacity predictor; expected "
                "'static'"
            )
        if router == "token_choice":
            if choice.capacity:
                raise ValueError(f"capacity is {choice.capacity}, but here a token takes its top_k experts")
            return select_experts(scores_SE, self.settings.top_k)
        if self.predictor is None or choice.rule == "static":
            return self.take_top(scores_SE, inputs)
        probability_SE = self.predictor(x_SD).sigmoid()
        if choice.rule == "interval":
            return probability_SE > choice.gamma
        over_SE = probability_SE > self.threshold(x_SD.device)
        if choice.rule == "threshold":
            return over_SE
        return select_counted(scores_SE.t().contiguous(), over_SE.sum(dim=0)).t()

    def take_top(self, scores_SE: Tensor, inputs: RouterInput) -> Tensor:
        """Each expert's top K in every pool: of each sample, or of all tokens at once."""
        is_sample = self.settings.pool == "sample" or self.settings.router == "expert_choice"
        num_pools = inputs.num_samples if is_sample else 1
        scores_EGP = scores_SE.t().unflatten(1, (num_pools, -1)).contiguous()
        capacity = inputs.choice.capacity or self.capacity(inputs.image_pixels)
        k = tokens_per_expert(capacity, scores_EGP.shape[2], scores_EGP.shape[0])
        return select_top(scores_EGP, k).flatten(1).t()

    def capacity(self, image_pixels: float) -> float:
        for resolution, capacity in self.settings.capacity_by_resolution:
            if image_pixels <= resolution**2:
                return capacity
        return self.settings.capacity

    def threshold(self, device: torch.device) -> Tensor:
        """The moving averages [E], divided by 1 - decay^n because they began at 0."""
        steps = self.settings.threshold_steps[self.number]
        average_E = torch.tensor(self.settings.thresholds[self.number], dtype=torch.float32, device=device)
        if not self.settings.threshold_bias_correction:
            return average_E
        start = self.settings.threshold_decay**steps
        return average_E / (1 - start) if steps > 0 else torch.zeros_like(average_E)
