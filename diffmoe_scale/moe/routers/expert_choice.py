"""Expert choice, as in EC-DiT (arXiv 2410.02098)."""

from torch import Tensor

from diffmoe_scale.moe.router import ExpertRouter
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics


class ExpertChoiceRouter(ExpertRouter):
    """Each expert takes the top K of every sample (EC-DiT): the pool is a sample, in training and at
    inference."""

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
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
