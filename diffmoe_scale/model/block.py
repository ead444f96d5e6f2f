"""One block of the transformer: self-attention, cross-attention to the caption, and a feed-forward network
that is dense or a mixture of experts.

B samples, N tokens a sample, S = B * N, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection
from diffmoe_scale.nn.attention import CrossAttention, SelfAttention
from diffmoe_scale.nn.norms import modulate, normalize


class Block(nn.Module):
    """A DiT block with adaLN-Zero (arXiv 2212.09748). `text_width` 0 leaves out cross-attention."""

    def __init__(self, config: ModelConfig, *, text_width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.heads)
        self.cross_attention = CrossAttention(width, config.heads, text_width) if text_width else None
        self.feed_forward = feed_forward
        self.recompute_feed_forward = config.activation_checkpointing == "experts"
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, x_BND: Tensor, time_BD: Tensor, text: TextStream | None, selection: Selection
    ) -> tuple[Tensor, Routing | None]:
        """Tokens [B, N, D], and the routing of an MoE layer."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(time_BD)).chunk(6, dim=-1)
        x_BND = x_BND + gate1[:, None] * self.attention(modulate(normalize(x_BND), shift1, scale1))
        if self.cross_attention is not None:
            assert text is not None
            x_BND = x_BND + self.cross_attention(normalize(x_BND), text.tokens_BLT, text.mask_BL)
        normed_BND = normalize(x_BND)
        inputs = modulate(normed_BND, shift2, scale2), normed_BND, time_BD, selection
        if self.recompute_feed_forward and torch.is_grad_enabled():
            y_BND, routing = checkpoint(self._feed_forward, *inputs, use_reentrant=False)
        else:
            y_BND, routing = self._feed_forward(*inputs)
        return x_BND + gate2[:, None] * y_BND, routing

    def _feed_forward(
        self, modulated_BND: Tensor, normed_BND: Tensor, time_BD: Tensor, selection: Selection
    ) -> tuple[Tensor, Routing | None]:
        if not isinstance(self.feed_forward, MoELayer):
            return self.feed_forward(modulated_BND), None
        context = RoutingContext(
            num_samples=modulated_BND.shape[0],
            unmodulated_SD=normed_BND.flatten(0, 1),
            time_BD=time_BD,
            selection=selection,
        )
        y_SD, routing = self.feed_forward(modulated_BND.flatten(0, 1), context)
        return y_SD.view_as(modulated_BND), routing
