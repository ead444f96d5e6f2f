"""DiffMoE (arXiv 2503.14487): each expert takes the top K of a pool.

Letters beside the package's: G pools, P tokens of a pool, R ranks of a pool, T tokens of this rank that the
predictor learns from.
"""

import torch
from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.fused_selection import select_top
from diffmoe_scale.moe.predictor import (
    CapacityPredictor,
    predictor_hidden_width,
    predictor_loss,
    spread_tokens,
)
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import (
    gather_pool,
    kth_largest,
    select_counted,
    split_pools,
)
from diffmoe_scale.moe.state import MovingThreshold
from diffmoe_scale.nn.generator import named_generator


class DiffMoERouter(ExpertRouter):
    """Each expert takes the top K of a pool of tokens; a predictor learns what it took, and decides alone at
    inference."""

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(config, place)
        width = place.megatron.hidden_size
        self.predictor = CapacityPredictor(
            width=width,
            hidden_width=predictor_hidden_width(width, config.predictor_width),
            num_experts=config.num_experts,
            decay=config.threshold_decay,
            is_bias_corrected=config.threshold_bias_correction,
        )

    def initialize(self, seed: int) -> None:
        super().initialize(seed)
        self.predictor.initialize(named_generator(seed, self.layer_index, "predictor"))

    @property
    def thresholds(self) -> MovingThreshold:
        return self.predictor

    def decision_logits(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        answer: Tensor = self.predictor(x_SD)
        return answer

    def calibrate(self, probability_E: Tensor) -> None:
        self.predictor.set_threshold(probability_E)

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        scores_SE = self.scores(logits_SE)
        num_pools = self.num_pools(context)
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
        scores_EGP, prediction_EGP = self.pool_both(scores_SE, prediction_TE, context)
        self.refuse_nan(scores_EGP, context.selection)
        k = self.tokens_per_expert(scores_EGP, context)
        mask_SE = self.own(select_top(scores_EGP, k), context)
        taught_mask_TE = mask_SE if taught_T is None else mask_SE[taught_T]
        loss = predictor_loss(prediction_TE, taught_mask_TE)
        if self.moe.predictor_weight != 1:
            loss = self.moe.predictor_weight * loss
        taught_k = max(1, round(k * prediction_EGP.shape[2] / scores_EGP.shape[2]))
        kth_EG = kth_largest(prediction_EGP, taught_k).sigmoid()
        rows_per_expert = k * num_pools if scores_EGP[0].numel() == num_tokens else None
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses={"predictor": loss},
            statistic_X=kth_EG.squeeze(1) if num_pools == 1 else kth_EG.mean(dim=1),
            metrics=load_metrics(mask_SE, rows_per_expert),
            rows_per_expert=rows_per_expert,
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
            prediction_TE=prediction_TE.detach() if context.selection.is_observed else None,
            taught_T=taught_T,
        )

    def pool_both(
        self, scores_SE: Tensor, prediction_TE: Tensor, context: RoutingContext
    ) -> tuple[Tensor, Tensor]:
        """Scores and predictions of all pools, [E, G, P] each, by one collective."""
        group = self.pool_ranks(context)
        if group is None:
            return self.pooled(scores_SE, context), self.pooled(prediction_TE, context)
        sizes = [len(scores_SE), len(prediction_TE)]
        values_EX = gather_pool(torch.cat([scores_SE, prediction_TE]), group)
        scores_ERS, prediction_ERT = values_EX.unflatten(1, (-1, sum(sizes))).split(sizes, dim=2)
        num_pools = self.num_pools(context)
        return (
            split_pools(scores_ERS.flatten(1), num_pools, group),
            split_pools(prediction_ERT.flatten(1), num_pools, group),
        )

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
