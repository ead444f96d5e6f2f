"""ProMoE (arXiv 2510.24711), its token choice: tokens go to the nearest prototypes, those of samples without
a caption to an expert of their own.

Letters beside the package's: C prototypes, one for each expert but the last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routing import Routing, RoutingContext, load_metrics
from diffmoe_scale.moe.selection import select_experts
from diffmoe_scale.nn.generator import named_generator

PROTOTYPE_STD = 0.02
TEMPERATURE = 0.07
FORBIDDEN = -1e9
"""A logit without a share. Not minus infinity, whose gradients are NaN where all are."""


class ProMoERouter(ExpertRouter):
    """A token of a sample with a caption (or class) takes the `moe.top_k` prototypes of largest cosine, which
    is its weight (`moe.gate` 'identity'). All tokens of a sample whose caption was dropped go to the last
    expert, with weight 1, and no other does. The same at inference, for each token by itself.

    Cosines are fp32; the released code has them in bf16.
    """

    def __init__(self, config: MoEConfig, place: RouterPlace) -> None:
        super().__init__(config, place)
        width = place.megatron.hidden_size
        self.weight: nn.Parameter = nn.Parameter(torch.empty(config.num_experts - 1, width))

    def initialize(self, seed: int) -> None:
        """Prototypes as the released code's; `moe.router_init_std` would not change a cosine."""
        generator = named_generator(seed, self.layer_index, "router")
        nn.init.normal_(self.weight, std=PROTOTYPE_STD, generator=generator)

    def gating(self, x_SD: Tensor, context: RoutingContext) -> Tensor:
        """Cosines [S, C] of tokens and prototypes."""
        return F.linear(F.normalize(x_SD.float(), dim=-1), F.normalize(self.weight.float(), dim=-1))

    def routing(self, logits_SE: Tensor, x_SD: Tensor, context: RoutingContext) -> Routing:
        self.refuse_rules(context.selection)
        scores_SC = self.scores(logits_SE)
        self.refuse_nan(scores_SC, context.selection)
        assert context.dropped_B is not None, "the router is not told which samples have no caption"
        dropped_S1 = context.dropped_B.repeat_interleave(len(x_SD) // context.num_samples).unsqueeze(1)
        mask_SC = select_experts(logits_SE.detach(), self.moe.top_k) & ~dropped_S1
        mask_SE = torch.cat([mask_SC, dropped_S1], dim=1)
        gate_SE = torch.cat([scores_SC.where(mask_SC, 0.0), dropped_S1.to(scores_SC)], dim=1)
        aux_losses = {}
        if context.selection.rule == "train":
            loss = contrastive_loss(self.weight.float(), x_SD.float(), mask_SC)
            aux_losses["contrastive"] = self.moe.contrastive_weight * loss
        return Routing(
            mask_SE,
            gate_SE,
            aux_losses=aux_losses,
            metrics=load_metrics(mask_SE),
            rows_per_expert=self.known_rows(mask_SE),
        )


def contrastive_loss(prototype_CD: Tensor, x_SD: Tensor, mask_SC: Tensor) -> Tensor:
    """Cross entropy by which a prototype is nearest to the mean of its own tokens on this rank (eq. 6), the
    mean over prototypes that have tokens; 0 where fewer than two have. The gradient reaches the tokens."""
    taken_SC = mask_SC.float()
    count_C = taken_SC.sum(dim=0)
    has_tokens_C = count_C > 0
    mean_CD = taken_SC.t() @ x_SD / count_C.clamp(min=1).unsqueeze(1)
    cosine_CC = F.normalize(prototype_CD, dim=-1) @ F.normalize(mean_CD, dim=-1).t()
    logits_CC = (cosine_CC / TEMPERATURE).masked_fill(~has_tokens_C, FORBIDDEN)
    loss_C = -logits_CC.log_softmax(dim=-1).diagonal().where(has_tokens_C, 0.0)
    num_used = has_tokens_C.sum()
    return (loss_C.sum() / num_used.clamp(min=1)).where(num_used > 1, 0.0)
