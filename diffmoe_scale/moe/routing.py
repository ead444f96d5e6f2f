"""What a router is given and what it answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Rule = Literal["train", "threshold", "threshold_count", "interval", "static"]


@dataclass(frozen=True)
class Selection:
    """How experts choose: `train` as in training; at inference by the predictor over its dynamic threshold
    (`threshold`), by that count and the gate score (`threshold_count`), by the predictor over `gamma`
    (`interval`), or the top K of this rank's tokens, of each sample where samples are the pools (`static`).
    `step` is the optimizer step, None outside of training: it sets the capacity, and errors name it.
    `gamma_by_block` are thresholds [E] of `interval` by block, where experts have thresholds of their own.
    `is_observed` asks for what the decision was made from (`Routing.scores_SE`)."""

    rule: Rule = "train"
    gamma: float = 0.5
    step: int | None = None
    gamma_by_block: Mapping[int, Tensor] = field(default_factory=dict)
    is_observed: bool = False


@dataclass(frozen=True)
class RoutingContext:
    """What a router may read beside its tokens: tokens before adaLN modulation, the timestep embedding of
    each sample, and the pixels of an image, which set its capacity (infinite for a layer by itself).
    `dropped_B` tells which samples have no caption or class (None: not known). Tokens are ordered by sample:
    S = num_samples * N; with `sequence_group` its ranks have the same samples, and N is this rank's part of
    their tokens."""

    num_samples: int
    unmodulated_SD: Tensor
    time_BD: Tensor
    selection: Selection
    image_pixels: float = math.inf
    dropped_B: Tensor | None = None
    sequence_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Routing:
    """A router's decision. `aux_losses` are weighted already; `statistic_X` is what moves the router's state
    after the step (the K-th probability of each expert, for DiffMoE) and is empty outside of training and
    without state; `target_SW` is a layer's own prediction of the network's output by token (Expert Race);
    `rows_per_expert` is set where every expert takes the same known number of this
    rank's tokens. `scores_SE` are what a training decision was made from, and `prediction_TE` the predictor's
    logits of the tokens `taught_T` (None: of all), detached, if the selection asks for them."""

    mask_SE: Tensor
    gate_SE: Tensor
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    statistic_X: Tensor = field(default_factory=lambda: torch.empty(0))
    metrics: dict[str, Tensor] = field(default_factory=dict)
    rows_per_expert: int | None = None
    scores_SE: Tensor | None = None
    prediction_TE: Tensor | None = None
    taught_T: Tensor | None = None
    target_SW: Tensor | None = None


def load_metrics(mask_SE: Tensor, rows_per_expert: int | None = None) -> dict[str, Tensor]:
    """Share of this rank's tokens that each expert took, times E (1 = a fair share), and its mean (DiffMoE
    eq. 8). `rows_per_expert`, where it is known, saves counting."""
    num_tokens, num_experts = mask_SE.shape
    if rows_per_expert is not None:
        load = rows_per_expert / num_tokens * num_experts
        load_E = torch.full((num_experts,), load, device=mask_SE.device)
        return {"load_E": load_E, "capacity": load_E[0]}
    load_E = mask_SE.float().mean(dim=0) * num_experts
    return {"load_E": load_E, "capacity": load_E.mean()}


def average_capacity(routings: Sequence[Routing]) -> Tensor:
    """Capacity of a forward pass, a scalar: the mean over experts and MoE layers (DiffMoE eq. 9)."""
    return torch.stack([routing.metrics["capacity"] for routing in routings]).mean()
