"""Layers and contexts that the tests of this folder share."""

from typing import Any  # settings of any type are passed on to MoEConfig

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.layer import MoELayer, single_rank_groups
from diffmoe_scale.moe.routing import RoutingContext, Rule, Selection

WIDTH, EXPERTS, SAMPLES, TOKENS = 16, 4, 3, 8


def alone() -> ProcessGroupCollection:
    """The groups of a process without peers."""
    return single_rank_groups()


def make_layer(
    *,
    groups: ProcessGroupCollection | None = None,
    layer_index: int = 1,
    seed: int = 0,
    width: int = WIDTH,
    target_width: int = 0,
    **settings: Any,
) -> MoELayer:
    config = MoEConfig(**({"num_experts": EXPERTS, "router_init_std": 0.5} | settings))
    layer = MoELayer(
        config,
        width=width,
        layer_index=layer_index,
        groups=groups or alone(),
        target_width=target_width,
    )
    layer.initialize(seed)
    return layer


def tokens(*, num_samples: int = SAMPLES, seed: int = 0) -> Tensor:
    return torch.randn(num_samples * TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def context(
    rule: Rule = "train",
    *,
    num_samples: int = SAMPLES,
    gamma: float = 0.5,
    step: int | None = None,
    unmodulated_SD: Tensor | None = None,
    time_BD: Tensor | None = None,
) -> RoutingContext:
    return RoutingContext(
        num_samples=num_samples,
        unmodulated_SD=torch.zeros(num_samples * TOKENS, WIDTH) if unmodulated_SD is None else unmodulated_SD,
        time_BD=torch.zeros(num_samples, WIDTH) if time_BD is None else time_BD,
        selection=Selection(rule, gamma, step),
    )
