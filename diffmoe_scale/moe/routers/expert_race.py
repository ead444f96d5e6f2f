"""Expert Race (arXiv 2503.16057): tokens and experts compete in one top K.

Letters beside the package's: G pools, P tokens of a pool, W numbers of the network's output by token.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import kth_largest, pairs_per_pool, select_best, training_capacity
from diffmoe_scale.moe.state import MovingThreshold
from diffmoe_scale.nn.generator import named_generator


class TargetHead(nn.Linear):
    """The network's target from a router's hidden layer, in fp32; zero at first."""

    def forward(self, hidden_SD: Tensor) -> Tensor:
        return F.linear(hidden_SD, self.weight.float(), self.bias.float())


class ExpertRaceRouter(ExpertRouter):
    """The top K of all pairs of token and expert of a pool, K being capacity times tokens: a token gets 0 to
    E experts. At inference a pair is taken whose score is over one threshold of the layer.

    The router is Linear, GELU and two heads: scores, and a prediction of the network's target
    (per-layer regularization, figure 12).
    """

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(config, place)
        width = place.megatron.hidden_size
        self.hidden = nn.Linear(width, width)
        self.target = TargetHead(width, place.target_width) if place.target_width else None
        self.limit = MovingThreshold(
            1, decay=config.threshold_decay, is_bias_corrected=config.threshold_bias_correction
        )

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        super().initialize(seed)
        generator = named_generator(seed, self.layer_index, "router hidden")
        bound = self.hidden.in_features**-0.5
        for parameter in self.hidden.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        if self.target is not None:
            nn.init.zeros_(self.target.weight)
            nn.init.zeros_(self.target.bias)
        self.limit.reset()

    @property
    def thresholds(self) -> MovingThreshold:
        return self.limit

    def calibrate(self, probability_E: Tensor) -> None:
        """[1]: one for all experts."""
        self.limit.set_threshold(self._score_of(probability_E))

    def _score_of(self, probability: Tensor) -> Tensor:
        """The score of a pair whose `decision_logits` give this probability."""
        return probability.logit() if self.moe.gate == "identity" else probability

    def decision_logits(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        logits_SE = self.gating(x_SD, context)
        return logits_SE.softmax(dim=-1).logit() if self.moe.gate == "softmax" else logits_SE

    def gating(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        return F.linear(self._hidden(x_SD), self.weight.float())

    def _hidden(self, x_SD: Tensor) -> Tensor:
        """A product in the model's format; all behind it is fp32."""
        return F.gelu(self.hidden(x_SD).float())

    def forward(self, x_SD: Tensor, context: RoutingContext) -> Routing:
        hidden_SD = self._hidden(x_SD)
        routing = self.routing(F.linear(hidden_SD, self.weight.float()), x_SD, context)
        if self.target is None or context.selection.rule != "train":
            return routing
        return replace(routing, target_SW=self.target(hidden_SD))

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
        scores_SE = self.scores(logits_SE)
        if context.selection.rule == "train":
            return self.train_routing(logits_SE, scores_SE, context)
        self.refuse_nan(scores_SE, context.selection)
        mask_SE = self.select_for_inference(scores_SE, context)
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            metrics=load_metrics(mask_SE),
            rows_per_expert=self.known_rows(mask_SE),
        )

    def train_routing(self, logits_SE: Tensor, scores_SE: Tensor, context: RoutingContext) -> Routing:
        """Only scores travel; every rank of the pool finds the same selection."""
        scores_EGP = self.pooled(scores_SE, context)
        self.refuse_nan(scores_EGP, context.selection)
        mask_EGP, kth_G = self.race(scores_EGP, context)
        mask_SE = self.own(mask_EGP, context)
        loss = similarity_loss(logits_SE, mask_EGP.flatten(1))
        return Routing(
            mask_SE,
            scores_SE.where(mask_SE, 0.0),
            aux_losses={"similarity": self.moe.similarity_weight * loss},
            statistic_X=kth_G.mean(dim=0, keepdim=True),
            metrics=load_metrics(mask_SE),
            rows_per_expert=self.known_rows(mask_SE),
            scores_SE=scores_SE.detach() if context.selection.is_observed else None,
        )

    def race(self, scores_EGP: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """Mask [E, G, P] of the best pairs of every pool, and the smallest score [G] among them."""
        capacity = training_capacity(self.moe, context.selection.step, image_pixels=context.image_pixels)
        num_experts, _, num_tokens = scores_EGP.shape
        k = pairs_per_pool(capacity, num_tokens, num_experts)
        scores_GX = scores_EGP.transpose(0, 1).flatten(1)
        kth_G = kth_largest(scores_GX, k)
        mask_GX = select_best(scores_GX, k, kth_G.unsqueeze(-1))
        return mask_GX.unflatten(1, (num_experts, num_tokens)).transpose(0, 1), kth_G

    def select_for_inference(self, scores_SE: Tensor, context: RoutingContext) -> Tensor:
        selection = context.selection
        if selection.rule == "static":
            scores_EGP = scores_SE.t().unflatten(1, (self.num_pools(context), -1))
            return self.race(scores_EGP, context)[0].flatten(1).t()
        if selection.rule == "threshold":
            return scores_SE > self.limit.threshold()
        probability_SE = scores_SE.sigmoid() if self.moe.gate == "identity" else scores_SE
        return probability_SE > selection.gamma_by_block.get(self.layer_index, selection.gamma)


def similarity_loss(logits_SE: Tensor, mask_EP: Tensor) -> Tensor:
    """Router similarity loss (eq. 9-11): experts that take the same tokens are to have unlike probabilities.
    1 for equal probabilities, of any selection in which some token has two experts.

    `mask_EP` is of all ranks' tokens, the logits of this rank's: the mean over ranks is the loss of the pool.
    """
    num_experts = len(mask_EP)
    taken_EP = mask_EP.float()
    together_EE = taken_EP @ taken_EP.t()
    diagonal_E = together_EE.diagonal()
    weight_E = num_experts * diagonal_E / diagonal_E.sum().clamp(min=1)
    others_EE = together_EE - diagonal_E.diag()
    num_pairs = num_experts**2 - num_experts
    weight_EE = weight_E.diag() + num_pairs * others_EE / others_EE.sum().clamp(min=1)
    share_SE = logits_SE.softmax(dim=-1)
    return (weight_EE * (share_SE.t() @ share_SE)).sum() / len(share_SE)
