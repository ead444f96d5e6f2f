"""DSMoE (arXiv 2512.01252): token choice by sigmoid scores.

The bias that balances loads without a loss is that of arXiv 2408.15664. The released code of DSMoE holds it
and never moves it; here it is moved, by the loads of all ranks, once an optimizer step.
"""

from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import select_experts
from diffmoe_scale.moe.state import BalanceBias

TINY = 1e-20


class DSMoERouter(ExpertRouter):
    """A token takes the top k of sigmoid(logit) + bias; the weights are the sigmoids of those it took,
    divided by their sum where they are several, times `moe.routed_scale`. The bias decides and weighs
    nothing. The same at inference, for each token by itself."""

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(config, place)
        self.balance = BalanceBias(config.num_experts, rate=config.bias_update_rate)

    def initialize(self, seed: int) -> None:
        super().initialize(seed)
        self.balance.bias_E.zero_()

    def learn(self, sum_X: Tensor, count: int) -> None:
        self.balance.update(sum_X)

    def state(self) -> dict[str, Tensor]:
        return {"bias": self.balance.bias_E}

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
        scores_SE = self.scores(logits_SE)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE = select_experts(scores_SE.detach() + self.balance.bias_E, self.moe.top_k)
        gate_SE = scores_SE.where(mask_SE, 0.0)
        if self.moe.top_k > 1:
            gate_SE = gate_SE / (gate_SE.sum(dim=-1, keepdim=True) + TINY)
        is_training = context.selection.rule == "train"
        return Routing(
            mask_SE,
            self.moe.routed_scale * gate_SE,
            statistic_X=mask_SE.sum(dim=0).float() if is_training else logits_SE.new_empty(0),
            metrics=load_metrics(mask_SE),
            rows_per_expert=self.known_rows(mask_SE),
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
        )
