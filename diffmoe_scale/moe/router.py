"""What every router is: logits and scores of tokens, and what it refuses.

Letters beside the package's: G pools, P tokens of a pool.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import Router
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.fused_selection import select_top
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection
from diffmoe_scale.moe.selection import (
    gather_pool,
    own_pools,
    split_pools,
    tokens_per_expert,
    training_capacity,
)
from diffmoe_scale.moe.state import MovingThreshold
from diffmoe_scale.moe.transformer_engine import FP8_ROWS
from diffmoe_scale.nn.generator import named_generator


@dataclass(frozen=True, kw_only=True)
class RouterPlace:
    """The layer that a router is of."""

    megatron: TransformerConfig
    groups: ProcessGroupCollection
    layer_index: int
    target_width: int
    """Numbers of the network's output by token; 0 for a layer by itself."""


class ExpertRouter(Router):
    """Logits and scores; what becomes of them is `routing`'s, in a subclass. Megatron's router without its
    bias, in fp32 on any device, and with the input that the config names."""

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(place.megatron, pg_collection=place.groups)
        self.moe = config
        self.layer_index = place.layer_index
        self.pool_group = pool_group_of(config, place.groups)
        self.bias = None
        self.time_weight = None
        if config.router_input == "decoupled":
            self.time_weight = nn.Parameter(torch.empty_like(self.weight))

    def initialize(self, seed: int) -> None:
        """Normal weights of `moe.router_init_std`."""
        generator = named_generator(seed, self.layer_index, "router")
        nn.init.normal_(self.weight, std=self.moe.router_init_std, generator=generator)
        if self.time_weight is not None:
            nn.init.normal_(self.time_weight, std=self.moe.router_init_std, generator=generator)

    def gating(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        """Router logits [S, E] in fp32. `decoupled` is one linear map of (token before modulation, timestep
        embedding)."""
        if self.time_weight is None:
            return F.linear(x_SD.float(), self.weight.float())
        time_BE = F.linear(context.time_BD.float(), self.time_weight.float())
        token_SE = F.linear(context.unmodulated_SD.float(), self.weight.float())
        return (token_SE.unflatten(0, (context.num_samples, -1)) + time_BE.unsqueeze(1)).flatten(0, 1)

    def scores(self, logits_SE: Tensor) -> Tensor:
        """What experts choose by, and the weight of their output (M of DiffMoE eq. 5; the identity is Expert
        Race's)."""
        match self.moe.gate:
            case "softmax":
                return logits_SE.softmax(dim=-1)
            case "sigmoid":
                return logits_SE.sigmoid()
            case "identity":
                return logits_SE

    def forward(self, x_SD: Tensor, context: RoutingContext) -> Routing:
        """Route the tokens x_SD of this rank. Collective over the pool's group in training, else local."""
        return self.routing(self.gating(x_SD, context), x_SD, context)

    @abstractmethod
    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        """The decision, from logits [S, E], tokens [S, D] and context."""

    @property
    def thresholds(self) -> MovingThreshold | None:
        """By which experts can be left to choose at inference; None without."""
        return None

    def decision_logits(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        """Logits [S, E] whose probabilities are held against the thresholds of `sampling.selection`
        'interval'. For routers with thresholds."""
        raise NotImplementedError

    def calibrate(self, probability_E: Tensor) -> None:
        """Have rule `threshold` decide as `interval` does by these thresholds of each expert. For routers
        with thresholds."""
        raise NotImplementedError

    def learn(self, sum_X: Tensor, count: int) -> None:
        """Take in `Routing.statistic_X` of one optimizer step, added up over `count` micro-batches of all
        ranks in fp64: thresholds move by its mean. Without state, nothing."""
        if self.thresholds is not None:
            self.thresholds.update_threshold(sum_X / count)

    def state(self) -> dict[str, Tensor]:
        """Numbers of each expert that are moved by `learn`, by their name in metrics."""
        return {} if self.thresholds is None else {"threshold": self.thresholds.threshold()}

    def num_pools(self, context: RoutingContext) -> int:
        """G, of this rank's tokens."""
        return context.num_samples if self.moe.pool == "sample" else 1

    def pool_ranks(self, context: RoutingContext) -> dist.ProcessGroup | None:
        """The ranks whose tokens compete; None where pools are of this rank alone. Those of a sequence group
        share the samples of a rank's pool."""
        return context.sequence_group if self.moe.pool in ("sample", "rank") else self.pool_group

    def pooled(self, values_SE: Tensor, context: RoutingContext) -> Tensor:
        """Values [E, G, P] of the tokens of all pools, without gradient. Collective over the pool's group."""
        group = self.pool_ranks(context)
        return split_pools(gather_pool(values_SE, group), self.num_pools(context), group)

    def own(self, mask_EGP: Tensor, context: RoutingContext) -> Tensor:
        """Mask [S, E] of this rank's tokens, from that of all ranks' pools."""
        return own_pools(mask_EGP, self.pool_ranks(context)).t()

    def known_rows(self, mask_SE: Tensor) -> int | None:
        """None: the mask says how many tokens each expert took. On `meta`, where it says nothing, a fair
        share."""
        if not mask_SE.is_meta:
            return None
        return round(self.moe.experts_a_token * mask_SE.shape[0] / self.moe.num_experts)

    def take_top(
        self, scores_SE: Tensor, num_pools: int, context: RoutingContext
    ) -> tuple[Tensor, int | None]:
        """Mask [S, E] of each expert's top K in every pool of this rank's samples, and the rows of an expert
        where they are known. Collective over a sequence group."""
        group = context.sequence_group
        scores_EGP = split_pools(gather_pool(scores_SE, group), num_pools, group)
        k = self.tokens_per_expert(scores_EGP, context)
        mask_SE = own_pools(select_top(scores_EGP, k), group).t()
        return mask_SE, k * num_pools if group is None else None

    def tokens_per_expert(self, scores_EGP: Tensor, context: RoutingContext) -> int:
        """K of every pool. FP8 GEMMs want multiples of 16 rows: then K * G is one on each rank, and nothing
        is padded."""
        num_experts, num_pools, num_tokens = scores_EGP.shape
        multiple = 1 if self.moe.precision == "model" else FP8_ROWS // math.gcd(FP8_ROWS, num_pools)
        capacity = training_capacity(self.moe, context.selection.step, image_pixels=context.image_pixels)
        return tokens_per_expert(capacity, num_tokens, num_experts, multiple=multiple)

    def refuse_nan(self, scores: Tensor, selection: Selection) -> None:
        """Raise if a score is NaN: a selection among NaN is arbitrary and would hide the cause. On CUDA
        without waiting."""
        when = "" if selection.step is None else f" in step {selection.step}"
        message = (
            f"the router of block {self.layer_index} got NaN scores{when}: "
            "its input or its weights are not finite; "
            "look for the first step with a NaN loss, or lower optimizer.learning_rate"
        )
        is_good = ~scores.isnan().any()
        if scores.is_cuda:
            torch._assert_async(is_good, message)
        elif not is_good:
            raise RunError(message)

    def refuse_rules(self, selection: Selection) -> None:
        """Raises: ValueError for a rule that the router does not have."""
        rules = self.moe.rules
        if selection.rule not in ("train", *rules):
            raise ValueError(
                f"sampling.selection is {selection.rule!r} but moe.router {self.moe.router!r} has no "
                f"capacity predictor; choose {' or '.join(map(repr, rules))}"
            )


def pool_group_of(config: MoEConfig, groups: ProcessGroupCollection) -> dist.ProcessGroup | None:
    """The ranks whose tokens compete; None where a pool is of one rank."""
    match config.pool:
        case "sample" | "rank":
            return None
        case "expert_parallel":
            return groups.ep
        case "data_parallel":
            return groups.dp
