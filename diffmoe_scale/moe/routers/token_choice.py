"""Token choice with a load-balancing loss, as in TC-DiT."""

from torch import Tensor

from diffmoe_scale.moe.router import ExpertRouter
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import mean_over, select_experts


class TokenChoiceRouter(ExpertRouter):
    """Each token takes its top k experts (TC-DiT), balanced by the loss of Switch Transformer (eq. 4)."""

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
        scores_SE = self.scores(logits_SE)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE = select_experts(scores_SE.detach(), self.moe.top_k)
        metrics = load_metrics(mask_SE)
        aux_losses = {}
        if context.selection.rule == "train":
            share_E = mean_over(metrics["load_E"], context.sequence_group) / self.moe.top_k
            aux_losses["balance"] = (
                self.moe.balance_weight * (share_E * logits_SE.softmax(dim=-1).mean(dim=0)).sum()
            )
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses=aux_losses,
            metrics=metrics,
            rows_per_expert=self.known_rows(mask_SE),
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
        )
