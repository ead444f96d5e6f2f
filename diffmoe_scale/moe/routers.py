"""Which expert takes which token, and with what weight: DiffMoE, expert choice and token choice.

Letters beside the package's: G pools, P tokens of a pool, R ranks of a pool, T tokens of this rank that the
predictor learns from.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.predictor import (
    CapacityPredictor,
    predictor_hidden_width,
    predictor_loss,
    spread_tokens,
)
from diffmoe_scale.moe.router import ExpertRouter
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import (
    gather_pool,
    kth_largest,
    select_counted,
    select_experts,
    select_top,
)
from diffmoe_scale.nn.generator import named_generator


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
            hidden_width=predictor_hidden_width(megatron.hidden_size, config.predictor_width),
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
            return self.train_routing(scores_SE, x_SD, num_pools, context)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE, rows_per_expert = self.select_for_inference(scores_SE, x_SD, num_pools, context)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            metrics=load_metrics(mask_SE, rows_per_expert),
            rows_per_expert=rows_per_expert,
        )

    def train_routing(
        self, scores_SE: Tensor, x_SD: Tensor, num_pools: int, context: RoutingContext
    ) -> Routing:
        """Top K of each pool. Only scores and predictions travel; every rank of the pool finds the same
        selection."""
        num_tokens = len(scores_SE)
        taught_T = self.taught_tokens(num_tokens, context, device=x_SD.device)
        prediction_TE = self.predictor(x_SD if taught_T is None else x_SD[taught_T])
        scores_EP, prediction_EP = self.pooled(scores_SE, prediction_TE)
        scores_EGP, prediction_EGP = (
            values_EP.unflatten(1, (num_pools, -1)) for values_EP in (scores_EP, prediction_EP)
        )
        self.refuse_nan(scores_EGP, context.selection)
        k = self.tokens_per_expert(scores_EGP, context)
        first = 0 if self.pool_group is None else self.pool_group.rank() * num_tokens
        mask_SE = select_top(scores_EGP, k).flatten(1)[:, first : first + num_tokens].t()
        taught_mask_TE = mask_SE if taught_T is None else mask_SE[taught_T]
        loss = predictor_loss(prediction_TE, taught_mask_TE)
        if self.moe.predictor_weight != 1:
            loss = self.moe.predictor_weight * loss
        taught_k = max(1, round(k * prediction_EGP.shape[2] / scores_EGP.shape[2]))
        kth_EG = kth_largest(prediction_EGP, taught_k).sigmoid()
        rows_per_expert = k * num_pools if scores_EP.shape[1] == num_tokens else None
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses={"predictor": loss},
            kth_probability_E=kth_EG.squeeze(1) if num_pools == 1 else kth_EG.mean(dim=1),
            metrics=load_metrics(mask_SE, rows_per_expert),
            rows_per_expert=rows_per_expert,
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
            prediction_TE=prediction_TE.detach() if context.selection.is_observed else None,
            taught_T=taught_T,
        )

    def pooled(self, scores_SE: Tensor, prediction_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and predictions of all ranks of the pool, [E, P] each, by one collective."""
        if self.pool_group is None:
            return gather_pool(scores_SE, None), gather_pool(prediction_TE, None)
        sizes = [len(scores_SE), len(prediction_TE)]
        pooled_EP = gather_pool(torch.cat([scores_SE, prediction_TE]), self.pool_group)
        scores_ERP, prediction_ERP = pooled_EP.unflatten(1, (-1, sum(sizes))).split(sizes, dim=2)
        return scores_ERP.flatten(1), prediction_ERP.flatten(1)

    def taught_tokens(
        self, num_tokens: int, context: RoutingContext, *, device: torch.device
    ) -> Tensor | None:
        """Places of the tokens that the predictor learns from; None is all of them."""
        if self.moe.predictor_tokens == 1:
            return None
        return spread_tokens(
            self.moe.predictor_tokens,
            num_samples=context.num_samples,
            num_tokens=num_tokens,
            first=context.selection.step or 0,
            device=device,
        )

    def select_for_inference(
        self, scores_SE: Tensor, x_SD: Tensor, num_pools: int, context: RoutingContext
    ) -> tuple[Tensor, int | None]:
        """Mask [S, E], and the rows of every expert where they are equal and known."""
        selection = context.selection
        if selection.rule == "static":
            return self.take_top(scores_SE, num_pools, context)
        probability_SE = self.predictor(x_SD).sigmoid()
        if selection.rule == "interval":
            return probability_SE > selection.gamma_by_block.get(self.layer_index, selection.gamma), None
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
        mask_SE, rows_per_expert = self.take_top(scores_SE, context.num_samples, context)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            metrics=load_metrics(mask_SE, rows_per_expert),
            rows_per_expert=rows_per_expert,
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
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
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses=aux_losses,
            metrics=metrics,
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
        )


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
