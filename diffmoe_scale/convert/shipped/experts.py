"""Experts and their routers at inference: every rule by which experts choose, on one device.

B samples, S tokens of all samples, D width, E experts, F expert width, R rows sorted by expert, P tokens of a
pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.moe.selection import select_counted, select_experts, select_top, tokens_per_expert
from diffmoe_scale.nn.feed_forward import FeedForward, activate

RULES = ("threshold", "threshold_count", "interval", "static")
GROUPED_ALIGNMENT_BYTES = 16


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

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, num_experts)

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
        self.predictor = Predictor(width, settings.num_experts) if has_predictor else None

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


class StackedExperts(nn.Module):
    """All experts' weights in one tensor of each kind: [E, F, D] and [E, D, F]; F is doubled for SwiGLU."""

    def __init__(self, settings: ExpertSettings, width: int, *, is_gated: bool) -> None:
        super().__init__()
        self.is_gated, num_experts = is_gated, settings.num_experts
        inner = 2 * settings.width if is_gated else settings.width
        self.w_in = nn.Parameter(torch.zeros(num_experts, inner, width))
        self.b_in = None if is_gated else nn.Parameter(torch.zeros(num_experts, inner))
        self.w_out = nn.Parameter(torch.zeros(num_experts, width, settings.width))
        self.b_out = None if is_gated else nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, rows_RD: Tensor, counts: list[int]) -> Tensor:
        linear = grouped_linear if can_group(rows_RD, self.w_in, self.w_out) else loop_linear
        hidden_RF = activate(linear(rows_RD, self.w_in, self.b_in, counts), is_gated=self.is_gated)
        return linear(hidden_RF, self.w_out, self.b_out, counts)


def can_group(rows_RD: Tensor, *weights_EOI: Tensor) -> bool:
    """Whether torch's grouped GEMM computes these: bf16 on CUDA, with rows of whole 16 bytes."""
    is_aligned = all(
        side * weight.element_size() % GROUPED_ALIGNMENT_BYTES == 0
        for weight in weights_EOI
        for side in weight.shape[1:]
    )
    return rows_RD.is_cuda and rows_RD.dtype == torch.bfloat16 and is_aligned and len(rows_RD) > 0


def loop_linear(x_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts: list[int]) -> Tensor:
    """Each expert's linear map of its own rows."""
    biases = [None] * len(counts) if bias_EO is None else list(bias_EO)
    parts = zip(x_RI.split(counts), weight_EOI, biases, strict=True)
    return torch.cat([F.linear(x, weight_OI, bias_O) for x, weight_OI, bias_O in parts])


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts: list[int]) -> Tensor:
    """The same by one kernel."""
    counts_E = torch.tensor(counts, device=x_RI.device)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    y_RO = F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=ends_E)
    return y_RO if bias_EO is None else y_RO + bias_EO.repeat_interleave(counts_E, dim=0)


class SeparateExperts(nn.ModuleList):
    """Linear layers of their own for every expert: what quantizers look for."""

    def __init__(self, settings: ExpertSettings, width: int, *, is_gated: bool) -> None:
        super().__init__(
            FeedForward(width, settings.width, is_gated=is_gated) for _ in range(settings.num_experts)
        )

    def forward(self, rows_RD: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([expert(rows) for expert, rows in zip(self, rows_RD.split(counts), strict=True)])


class ExpertLayer(nn.Module):
    """y_s = sum over the experts i that took token s of gate[s, i] * E_i(x_s) (DiffMoE eq. 7), plus the
    shared experts. A token that no expert took gets 0."""

    def __init__(self, settings: ExpertSettings, width: int, *, number: int, is_gated: bool) -> None:
        super().__init__()
        self.router = Router(settings, width, number=number)
        kind = SeparateExperts if settings.layout == "separate" else StackedExperts
        self.experts = kind(settings, width, is_gated=is_gated)
        self.shared_experts = (
            FeedForward(width, settings.shared_width, is_gated=is_gated) if settings.shared_width else None
        )

    def forward(self, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        mask_SE, scores_SE = self.router(x_SD, inputs)
        expert_R, token_R = mask_SE.t().nonzero(as_tuple=True)
        rows_RD = self.experts(x_SD[token_R], mask_SE.sum(dim=0).tolist())
        # The gate is fp32: the product is rounded once, to the format of the model.
        rows_RD = (rows_RD * scores_SE[token_R, expert_R, None]).to(x_SD.dtype)
        y_SD = torch.zeros_like(x_SD).index_add(0, token_R, rows_RD)
        return y_SD if self.shared_experts is None else y_SD + self.shared_experts(x_SD)
