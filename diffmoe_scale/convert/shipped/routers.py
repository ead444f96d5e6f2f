"""Routers at inference: every rule by which experts choose, on one device.

B samples, S tokens of all samples, D width, E experts, P tokens of a pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.moe.selection import (
    pairs_per_pool,
    select_counted,
    select_experts,
    select_top,
    tokens_per_expert,
)

WITH_THRESHOLDS = ("diffmoe", "expert_race", "expert_threshold")
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
    routed_scale: float = 1.0
    biases: Sequence[Sequence[float]] = ()
    """Of DSMoE, by block with experts and by expert."""
    target_width: int = 0
    """Of Expert Race: numbers of the network's output by token, which its routers predict in training."""


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
    dropped_B: Tensor | None


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
        self.is_race, is_promoe = settings.router == "expert_race", settings.router == "promoe"
        self.weight = nn.Parameter(torch.zeros(settings.num_experts - is_promoe, width))
        self.hidden = nn.Linear(width, width) if self.is_race else None
        # Not used here; a model that is trained on has it.
        self.target = nn.Linear(width, settings.target_width) if self.is_race else None
        is_decoupled, has_predictor = settings.router_input == "decoupled", settings.router == "diffmoe"
        self.time_weight = nn.Parameter(torch.zeros_like(self.weight)) if is_decoupled else None
        hidden_width = settings.predictor_width or width
        self.predictor = Predictor(width, hidden_width, settings.num_experts) if has_predictor else None

    def forward(self, x_SD: Tensor, inputs: RouterInput) -> tuple[Tensor, Tensor]:
        logits_SE = self.logits(x_SD, inputs)
        scores_SE = self.scores(logits_SE)
        if scores_SE.isnan().any():
            raise ValueError("a router got NaN scores: its input or its weights are not finite")
        self.refuse(inputs.choice)
        match self.settings.router:
            case "dsmoe":
                return self.balanced(scores_SE)
            case "expert_race" | "expert_threshold":
                return self.over(logits_SE, scores_SE, inputs), scores_SE
            case "promoe":
                return self.nearest(logits_SE, scores_SE, inputs)
            case "token_choice":
                return select_experts(scores_SE, self.settings.top_k), scores_SE
        return self.select(scores_SE, x_SD, inputs), scores_SE

    def refuse(self, choice: Choice) -> None:
        """Raises: ValueError for a rule that the router does not have."""
        router = self.settings.router
        rules = [rule for rule in RULES if rule == "static" or router in WITH_THRESHOLDS]
        if self.predictor is None and "threshold_count" in rules:
            rules.remove("threshold_count")
        if choice.rule not in rules:
            raise ValueError(
                f"selection is {choice.rule!r}, but router {router!r} has no capacity predictor; expected "
                f"{' or '.join(map(repr, rules))}"
            )
        if choice.capacity and router in ("token_choice", "dsmoe", "promoe"):
            raise ValueError(f"capacity is {choice.capacity}, but here a token takes its top_k experts")

    def logits(self, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        weight_ED = self.weight.float()
        if self.settings.router == "promoe":
            return F.linear(F.normalize(x_SD.float(), dim=-1), F.normalize(weight_ED, dim=-1))
        if self.hidden is not None:
            return F.linear(F.gelu(self.hidden(x_SD).float()), weight_ED)
        if self.time_weight is None:
            return F.linear(x_SD.float(), weight_ED)
        time_BE = F.linear(inputs.time_BD.float(), self.time_weight.float())
        token_SE = F.linear(inputs.unmodulated_SD.float(), weight_ED)
        return (token_SE.unflatten(0, (inputs.num_samples, -1)) + time_BE.unsqueeze(1)).flatten(0, 1)

    def scores(self, logits_SE: Tensor) -> Tensor:
        match self.settings.gate:
            case "softmax":
                return logits_SE.softmax(dim=-1)
            case "sigmoid":
                return logits_SE.sigmoid()
        return logits_SE

    def select(self, scores_SE: Tensor, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        """Of DiffMoE and expert choice."""
        choice = inputs.choice
        if self.predictor is None or choice.rule == "static":
            return self.take_top(scores_SE, inputs)
        probability_SE = self.predictor(x_SD).sigmoid()
        if choice.rule == "interval":
            return probability_SE > choice.gamma
        over_SE = probability_SE > self.threshold(x_SD.device)
        if choice.rule == "threshold":
            return over_SE
        return select_counted(scores_SE.t().contiguous(), over_SE.sum(dim=0)).t()

    def balanced(self, scores_SE: Tensor) -> tuple[Tensor, Tensor]:
        """Of DSMoE: a token's best by score and bias, which weighs nothing."""
        top_k = self.settings.top_k
        mask_SE = select_experts(scores_SE + scores_SE.new_tensor(self.settings.biases[self.number]), top_k)
        gate_SE = scores_SE.where(mask_SE, 0.0)
        if top_k > 1:
            gate_SE = gate_SE / (gate_SE.sum(dim=-1, keepdim=True) + 1e-20)
        return mask_SE, self.settings.routed_scale * gate_SE

    def over(self, logits_SE: Tensor, scores_SE: Tensor, inputs: RouterInput) -> Tensor:
        """Of Expert Race, whose threshold is on scores, and of Expert Threshold, whose are on logits."""
        choice, values_SE = inputs.choice, scores_SE if self.is_race else logits_SE
        if choice.rule == "threshold":
            return values_SE > self.threshold(values_SE.device)
        if choice.rule == "static":
            return self.take_top(values_SE, inputs)
        is_probability = self.is_race and self.settings.gate != "identity"
        return (values_SE if is_probability else values_SE.sigmoid()) > choice.gamma

    def nearest(self, cosine_SC: Tensor, scores_SC: Tensor, inputs: RouterInput) -> tuple[Tensor, Tensor]:
        """Of ProMoE: a token's nearest prototypes, or the last expert without a caption."""
        if inputs.dropped_B is None:
            raise ValueError("dropped is missing: the model's routers ask which samples have no caption")
        dropped_S1 = inputs.dropped_B.repeat_interleave(len(cosine_SC) // inputs.num_samples).unsqueeze(1)
        mask_SC = select_experts(cosine_SC, self.settings.top_k) & ~dropped_S1
        return torch.cat([mask_SC, dropped_S1], dim=1), torch.cat([scores_SC, dropped_S1.float()], dim=1)

    def take_top(self, scores_SE: Tensor, inputs: RouterInput) -> Tensor:
        """Each expert's top K in every pool: of each sample, or of all tokens at once; of a race that of all
        pairs."""
        is_sample = self.settings.pool == "sample" or self.settings.router == "expert_choice"
        num_pools = inputs.num_samples if is_sample else 1
        scores_EGP = scores_SE.t().unflatten(1, (num_pools, -1)).contiguous()
        capacity = inputs.choice.capacity or self.capacity(inputs.image_pixels)
        if self.is_race:
            scores_GX = scores_EGP.transpose(0, 1).flatten(1)
            mask_GX = select_top(scores_GX, pairs_per_pool(capacity, scores_EGP.shape[2], len(scores_EGP)))
            return mask_GX.unflatten(1, (len(scores_EGP), -1)).transpose(0, 1).flatten(1).t()
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
