"""One block of the transformer: self-attention, cross-attention to the caption, and a feed-forward network
that is dense or a mixture of experts.

B samples, N tokens a sample, S = B * N, D width, L text tokens, T text width, M numbers of a modulation.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection
from diffmoe_scale.nn.attention import CrossAttention, SelfAttention
from diffmoe_scale.nn.modulation import Modulation, ModulationTable
from diffmoe_scale.nn.norms import modulate, normalize
from diffmoe_scale.nn.rope import Rotation


@dataclass(frozen=True)
class BlockContext:
    """What all blocks are given beside their tokens."""

    time_BD: Tensor
    """The embedding of time, pooled caption, class and sizes."""
    modulation_BM: Tensor
    """What a block's modulation reads: `time_BD`, or what `model.modulation` 'shared' makes of it once."""
    text_mask_BL: Tensor | None
    """True where a text token counts; None in class mode."""
    rotation: Rotation | None
    """The places of the image's tokens, for `model.positions` 'rope2d'."""
    selection: Selection
    image_pixels: int
    """Of each image of the batch, not of its latents."""
    dropped_B: Tensor | None = None
    """Which samples have no caption or class; None: not known."""
    sequence_group: dist.ProcessGroup | None = None
    """Ranks that have a part of the images' tokens each; None: this one has all."""


def build_modulation(config: ModelConfig, count: int) -> nn.Module:
    """The modulation of a block that has `count` shifts, scales and gates."""
    match config.modulation:
        case "block":
            return Modulation(config.width, count)
        case "shared":
            return ModulationTable(config.width, count)


class Block(nn.Module):
    """A DiT block with adaLN-Zero (arXiv 2212.09748). `text_width` 0 leaves out cross-attention."""

    def __init__(self, config: ModelConfig, *, text_width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        width, heads, qk_norm = config.width, config.heads, config.qk_norm
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm)
        self.cross_attention = (
            CrossAttention(width, heads, text_width, qk_norm=qk_norm) if text_width else None
        )
        self.feed_forward = feed_forward
        self.recompute_feed_forward = config.activation_checkpointing == "experts"
        self.modulation = build_modulation(config, 6)

    def forward(
        self, x_BND: Tensor, text_BLT: Tensor | None, context: BlockContext
    ) -> tuple[Tensor, Tensor | None, Routing | None]:
        """Tokens [B, N, D], the text as it came, and the routing of an MoE layer."""
        modulation_BM = self.modulation(context.modulation_BM)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_BM.chunk(6, dim=-1)
        attended_BND = self.attention(
            modulate(normalize(x_BND), shift1, scale1), context.rotation, group=context.sequence_group
        )
        x_BND = x_BND + gate1[:, None] * attended_BND
        if self.cross_attention is not None:
            x_BND = x_BND + self.cross_attention(normalize(x_BND), text_BLT, context.text_mask_BL)
        normed_BND = normalize(x_BND)
        y_BND, routing = run_feed_forward(
            self.feed_forward,
            modulate(normed_BND, shift2, scale2),
            normed_BND,
            context,
            is_recomputed=self.recompute_feed_forward,
        )
        return x_BND + gate2[:, None] * y_BND, text_BLT, routing


def run_feed_forward(
    feed_forward: nn.Module,
    modulated_BND: Tensor,
    normed_BND: Tensor,
    context: BlockContext,
    *,
    is_recomputed: bool,
) -> tuple[Tensor, Routing | None]:
    """The answer [B, N, D] of a dense network or of an MoE layer, and the latter's routing. `is_recomputed`:
    the backward pass computes it again instead of keeping what is inside."""
    inputs = feed_forward, modulated_BND, normed_BND, context
    if is_recomputed and torch.is_grad_enabled():
        # checkpoint carries no types.
        answer: tuple[Tensor, Routing | None] = checkpoint(_feed_forward, *inputs, use_reentrant=False)
        return answer
    return _feed_forward(*inputs)


def _feed_forward(
    feed_forward: nn.Module, modulated_BND: Tensor, normed_BND: Tensor, context: BlockContext
) -> tuple[Tensor, Routing | None]:
    if not isinstance(feed_forward, MoELayer):
        return feed_forward(modulated_BND), None
    routing_context = RoutingContext(
        num_samples=modulated_BND.shape[0],
        unmodulated_SD=normed_BND.flatten(0, 1),
        time_BD=context.time_BD,
        selection=context.selection,
        image_pixels=context.image_pixels,
        dropped_B=context.dropped_B,
        sequence_group=context.sequence_group,
    )
    y_SD, routing = feed_forward(modulated_BND.flatten(0, 1), routing_context)
    return y_SD.view_as(modulated_BND), routing
