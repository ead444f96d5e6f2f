"""One block of the transformer with joint attention: image and text tokens are two streams with weights of
their own, which attend to each other; experts are for image tokens.

B samples, N tokens a sample, D width, L text tokens.
"""

from torch import Tensor, nn

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.model.block import BlockContext, build_modulation, run_feed_forward
from diffmoe_scale.moe.routing import Routing
from diffmoe_scale.nn.attention import JointAttention
from diffmoe_scale.nn.norms import modulate, normalize


class JointBlock(nn.Module):
    """A block of MMDiT (Stable Diffusion 3, arXiv 2403.03206), adaLN-Zero in both streams.

    `feed_forward` is the image's, dense or experts; `text_feed_forward` the text's, None in the last block:
    what text would become there has no reader.
    """

    def __init__(
        self, config: ModelConfig, *, feed_forward: nn.Module, text_feed_forward: nn.Module | None
    ) -> None:
        super().__init__()
        is_last = text_feed_forward is None
        self.attention = JointAttention(config.width, config.heads, qk_norm=config.qk_norm, is_last=is_last)
        self.feed_forward = feed_forward
        self.text_feed_forward = text_feed_forward
        self.recompute_feed_forward = config.activation_checkpointing == "experts"
        self.modulation = build_modulation(config, 6)
        self.text_count = 2 if is_last else 6
        self.text_modulation = build_modulation(config, self.text_count)

    def forward(
        self, x_BND: Tensor, text_BLD: Tensor, context: BlockContext
    ) -> tuple[Tensor, Tensor | None, Routing | None]:
        """Tokens [B, N, D], text tokens [B, L, D] (None from the last block), and the routing of an MoE
        layer."""
        assert context.text_mask_BL is not None
        shift, scale, *after = self.modulation(context.modulation_BM).chunk(6, dim=-1)
        text_shift, text_scale, *text_after = self.text_modulation(context.modulation_BM).chunk(
            self.text_count, dim=-1
        )
        attended_BND, text_attended_BLD = self.attention(
            modulate(normalize(x_BND), shift, scale),
            modulate(normalize(text_BLD), text_shift, text_scale),
            context.text_mask_BL,
            context.rotation,
            group=context.sequence_group,
        )
        x_BND, routing = self._after_attention(self.feed_forward, x_BND, attended_BND, after, context)
        if self.text_feed_forward is None:
            return x_BND, None, routing
        text_BLD, _ = self._after_attention(
            self.text_feed_forward, text_BLD, text_attended_BLD, text_after, context
        )
        return x_BND, text_BLD, routing

    def _after_attention(
        self,
        feed_forward: nn.Module,
        x_BND: Tensor,
        attended_BND: Tensor,
        modulation: list[Tensor],
        context: BlockContext,
    ) -> tuple[Tensor, Routing | None]:
        """A stream after attention and its feed-forward network, and the routing of an MoE layer."""
        gate1, shift, scale, gate2 = modulation
        x_BND = x_BND + gate1[:, None] * attended_BND
        normed_BND = normalize(x_BND)
        y_BND, routing = run_feed_forward(
            feed_forward,
            modulate(normed_BND, shift, scale),
            normed_BND,
            context,
            is_recomputed=self.recompute_feed_forward,
        )
        return x_BND + gate2[:, None] * y_BND, routing
