"""Which expert takes which token, and with what weight.

Letters beside the package's: G pools, P tokens of a pool, X experts or twice as many (scores and
predictions).
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import Router
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.predictor import CapacityPredictor, predictor_loss
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection, load_metrics
from diffmoe_scale.moe.selection import (
    gather_pool,
    kth_largest,
    select_counted,
    select_experts,
    select_top,
    tokens_per_expert,
    training_capacity,
)
from diffmoe_scale.moe.transformer_engine import FP8_ROWS
from diffmoe_scale.nn.generator import named_generator


class ExpertRouter(Router):
    """Logits and scores; what becomes of them is `routing`'s, in a subclass. Megatron's router without its
    bias, in fp32 on any device, and with the input that the config names."""

    def __init__(
        self,
        config: MoEConfig,
        *,
        megatron: TransformerConfig,
        groups: ProcessGroupCollection,
        layer_index: int,
    ) -> None:
        super().__init__(megatron, pg_collection=groups)
        self.moe = config
        self.layer_index = layer_index
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

    def take_top(self, scores_SE: Tensor, num_pools: int, step: int | None) -> tuple[Tensor, int]:
        """Mask [S, E] of each expert's top K in every pool of this rank, and the rows of an expert."""
        scores_EGP = scores_SE.detach().t().unflatten(1, (num_pools, -1)).contiguous()
        k = self.tokens_per_expert(scores_EGP, step)
        return select_top(scores_EGP, k).flatten(1).t(), k * num_pools

    def tokens_per_expert(self, scores_EGP: Tensor, step: int | None) -> int:
        """K of every pool. FP8 GEMMs want multiples of 16 rows: then K * G is one on each rank, and nothing
        is padded."""
        num_experts, num_pools, num_tokens = scores_EGP.shape
        multiple = 1 if self.moe.precision == "model" else FP8_ROWS // math.gcd(FP8_ROWS, num_pools)
        return tokens_per_expert(
            training_capacity(self.moe, step), num_tokens, num_experts, multiple=multiple
        )

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

    def refuse_predictor_rules(self, selection: Selection) -> None:
        if selection.rule not in ("train", "static"):
            raise ValueError(
                f"sampling.selection is {selection.rule!r} but moe.router {self.moe.router!r} has no "
                "capacity predictor; choose 'static'"
            )


class DiffMoERouter(ExpertRouter):
    """Each expert takes the top K of a pool of tokens; a predictor learns what it took, and decides alone at
    inference."""

    def __init__(
        self,
        config: MoEConfig,
        *,
        megatron: TransformerConfig,
        groups: ProcessGroupCollection,
        layer_index: int,
    ) -> None:
        super().__init__(config, megatron=megatron, groups=groups, layer_index=layer_index)
        match config.pool:
            case "sample" | "rank":
                self.pool_group = None
            case "expert_parallel":
                self.pool_group = groups.ep
            case "data_parallel":
                self.pool_group = groups.dp
        self.predictor = CapacityPredictor(
            width=megatron.hidden_size,
            num_experts=config.num_experts,
            decay=config.threshold_decay,
            is_bias_corrected=config.threshold_bias_correction,
        )

    def initialize(self, seed: int) -> None:
        super().initialize(seed)
        self.predictor.initialize(named_generator(seed, self.layer_index, "predictor"))

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        scores_SE = self.scores(logits_SE)
        num_pools = context.num_samples if self.moe.pool == "sample" else 1
        if context.selection.rule == "train":
            return self.train_routing(scores_SE, x_SD, num_pools, context.selection)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE, rows_per_expert = self.select_for_inference(scores_SE, x_SD, num_pools, context.selection)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            metrics=load_metrics(mask_SE),
            rows_per_expert=rows_per_expert,
        )

    def train_routing(self, scores_SE: Tensor, x_SD: Tensor, num_pools: int, selection: Selection) -> Routing:
        """Top K of each pool. Only scores and predictions travel; every rank of the pool finds the same
        selection."""
        num_tokens, num_experts = scores_SE.shape
        prediction_SE = self.predictor(x_SD)
        pooled_XP = gather_pool(torch.cat([scores_SE, prediction_SE], dim=1), self.pool_group)
        scores_EGP, prediction_EGP = pooled_XP.unflatten(1, (num_pools, -1)).split(num_experts)
        self.refuse_nan(scores_EGP, selection)
        k = self.tokens_per_expert(scores_EGP, selection.step)
        first = 0 if self.pool_group is None else self.pool_group.rank() * num_tokens
        mask_SE = select_top(scores_EGP, k).flatten(1)[:, first : first + num_tokens].t()
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses={"predictor": self.moe.predictor_weight * predictor_loss(prediction_SE, mask_SE)},
            kth_probability_E=kth_largest(prediction_EGP, k).sigmoid().mean(dim=1),
            metrics=load_metrics(mask_SE),
            rows_per_expert=k * num_pools if pooled_XP.shape[1] == num_tokens else None,
        )

    def select_for_inference(
        self, scores_SE: Tensor, x_SD: Tensor, num_pools: int, selection: Selection
    ) -> tuple[Tensor, int | None]:
        """Mask [S, E], and the rows of every expert where they are equal and known."""
        if selection.rule == "static":
            return self.take_top(scores_SE, num_pools, selection.step)
        probability_SE = self.predictor(x_SD).sigmoid()
        if selection.rule == "interval":
            return probability_SE > selection.gamma, None
        over_SE = probability_SE > self.predictor.threshold()
        if selection.rule == "threshold":
            return over_SE, None
        return select_counted(scores_SE.t().contiguous(), over_SE.sum(dim=0)).t(), None


class ExpertChoiceRouter(ExpertRouter):
    """Each expert takes the top K of every sample (EC-DiT): the pool is a sample, in training and at
    inference."""

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_predictor_rules(context.selection)
        scores_SE = self.scores(logits_SE)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE, rows_per_expert = self.take_top(scores_SE, context.num_samples, context.selection.step)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            metrics=load_metrics(mask_SE),
            rows_per_expert=rows_per_expert,
        )


class TokenChoiceRouter(ExpertRouter):
    """Each token takes its top k experts (TC-DiT), balanced by the loss of Switch Transformer (eq. 4)."""

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_predictor_rules(context.selection)
        scores_SE = self.scores(logits_SE)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE = select_experts(scores_SE.detach(), self.moe.top_k)
        metrics = load_metrics(mask_SE)
        aux_losses = {}
        if context.selection.rule == "train":
            share_E = metrics["load_E"] / self.moe.top_k
            aux_losses["balance"] = (
                self.moe.balance_weight * (share_E * logits_SE.softmax(dim=-1).mean(dim=0)).sum()
            )
        return Routing(mask_SE, scores_SE.where(mask_SE, 0.0), aux_losses=aux_losses, metrics=metrics)


def build_router(
    config: MoEConfig,
    *,
    megatron: TransformerConfig,
    groups: ProcessGroupCollection,
    layer_index: int,
) -> ExpertRouter:
    """The router that `moe.router` names."""
    match config.router:
        case "diffmoe":
            kind: type[ExpertRouter] = DiffMoERouter
        case "expert_choice":
            kind = ExpertChoiceRouter
        case "token_choice":
            kind = TokenChoiceRouter
    return kind(config, megatron=megatron, groups=groups, layer_index=layer_index)
