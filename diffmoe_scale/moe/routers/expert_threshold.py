"""Expert Threshold (arXiv 2603.11535): an expert takes every token whose score is over its moving average, in
training and at inference.

Letters beside the package's: G pools, P tokens of a pool. The clamp of loads, off in the released
configurations, is not here.
"""

from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import kth_largest, select_best
from diffmoe_scale.moe.state import MovingThreshold


class ExpertThresholdRouter(ExpertRouter):
    """Expert i takes the tokens with logit over c_i, the moving average of the K-th largest logit of a pool;
    a token gets 0 to E experts, and none looks at another. In the first `moe.threshold_warmup_steps` the top
    K of the pool are taken while the average is learned."""

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(config, place)
        self.limit = MovingThreshold(
            config.num_experts,
            decay=config.threshold_decay,
            is_bias_corrected=config.threshold_bias_correction,
        )

    def initialize(self, seed: int) -> None:
        super().initialize(seed)
        self.limit.reset()

    @property
    def thresholds(self) -> MovingThreshold:
        return self.limit

    def calibrate(self, probability_E: Tensor) -> None:
        self.limit.set_threshold(probability_E.logit())

    def decision_logits(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        return self.gating(x_SD, context)

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
        if context.selection.rule == "train":
            return self.train_routing(logits_SE, context)
        self.refuse_nan(logits_SE, context.selection)
        mask_SE, rows_per_expert = self.select_for_inference(logits_SE, context)
        return self._answer(logits_SE, mask_SE, rows_per_expert, context)

    def train_routing(self, logits_SE: Tensor, context: RoutingContext) -> Routing:
        """The thresholds are those of the steps before. Collective over the pool's group, whose K-th logits
        they are made of."""
        logits_EGP = self.pooled(logits_SE, context)
        self.refuse_nan(logits_EGP, context.selection)
        k = self.tokens_per_expert(logits_EGP, context)
        kth_EG = kth_largest(logits_EGP, k)
        step = context.selection.step
        if step is not None and step <= self.moe.threshold_warmup_steps:
            mask_EGP = select_best(logits_EGP, k, kth_EG.unsqueeze(-1))
            mask_SE = self.own(mask_EGP, context)
            is_local = mask_EGP[0].numel() == len(logits_SE)
            rows_per_expert = k * mask_EGP.shape[1] if is_local else None
        else:
            mask_SE, rows_per_expert = logits_SE > self.limit.threshold(), None
        return self._answer(logits_SE, mask_SE, rows_per_expert, context, statistic_X=kth_EG.mean(dim=1))

    def _answer(
        self,
        logits_SE: Tensor,
        mask_SE: Tensor,
        rows_per_expert: int | None,
        context: RoutingContext,
        *,
        statistic_X: Tensor | None = None,
    ) -> Routing:
        scores_SE = self.scores(logits_SE)
        rows_per_expert = rows_per_expert or self.known_rows(mask_SE)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            statistic_X=logits_SE.new_empty(0) if statistic_X is None else statistic_X,
            metrics=load_metrics(mask_SE, rows_per_expert),
            rows_per_expert=rows_per_expert,
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
        )

    def select_for_inference(self, logits_SE: Tensor, context: RoutingContext) -> tuple[Tensor, int | None]:
        """Mask [S, E], and the rows of every expert where they are equal and known."""
        selection = context.selection
        match selection.rule:
            case "static":
                return self.take_top(logits_SE, self.num_pools(context), context)
            case "threshold":
                return logits_SE > self.limit.threshold(), None
        gamma = selection.gamma_by_block.get(self.layer_index, selection.gamma)
        return logits_SE.sigmoid() > gamma, None
