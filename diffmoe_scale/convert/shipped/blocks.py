"""The blocks of the transformer at inference: cross-attention to the text, or attention together with it.

B samples, N tokens a sample, D width, L text tokens, T text width, M numbers of a modulation.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from diffmoe_scale.convert.shipped.experts import ExpertLayer
from diffmoe_scale.convert.shipped.routers import Choice, RouterInput
from diffmoe_scale.nn.attention import CrossAttention, HeadNorm, JointAttention, SelfAttention
from diffmoe_scale.nn.modulation import Modulation, ModulationTable
from diffmoe_scale.nn.norms import modulate, normalize
from diffmoe_scale.nn.rope import Rotation


@dataclass(frozen=True)
class BlockParts:
    """What blocks are made of."""

    width: int
    heads: int
    qk_norm: HeadNorm
    text_width: int
    is_shared: bool

    def modulation(self, count: int) -> nn.Module:
        return ModulationTable(self.width, count) if self.is_shared else Modulation(self.width, count)


@dataclass(frozen=True)
class Surroundings:
    """What all blocks are given beside their tokens."""

    time_BD: Tensor
    modulation_BM: Tensor
    mask_BL: Tensor | None
    rotation: Rotation | None
    choice: Choice
    image_pixels: float
    dropped_B: Tensor | None
    """Which samples have no caption or class."""


def run_feed_forward(
    network: nn.Module,
    x_BND: Tensor,
    shift_BD: Tensor,
    scale_BD: Tensor,
    around: Surroundings,
    *,
    has_experts: bool,
) -> Tensor:
    """The answer [B, N, D] of a dense network or of experts to normalized and modulated tokens.

    What a network is is asked when it is made: diffusers runs this file again for a second folder with the
    same code, and the classes of the first are then no longer those of this module.
    """
    normed_BND = normalize(x_BND)
    modulated_BND = modulate(normed_BND, shift_BD, scale_BD)
    if not has_experts:
        y_BND: Tensor = network(modulated_BND)
        return y_BND
    inputs = RouterInput(
        num_samples=x_BND.shape[0],
        unmodulated_SD=normed_BND.flatten(0, 1),
        time_BD=around.time_BD,
        choice=around.choice,
        image_pixels=around.image_pixels,
        dropped_B=around.dropped_B,
    )
    y_SD: Tensor = network(modulated_BND.flatten(0, 1), inputs)
    return y_SD.view_as(x_BND)


class CrossBlock(nn.Module):
    """Attention among image tokens, then to the text; without text in models of classes."""

    def __init__(self, part: BlockParts, feed_forward: nn.Module) -> None:
        super().__init__()
        width, heads, qk_norm = part.width, part.heads, part.qk_norm
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm)
        self.cross_attention = (
            CrossAttention(width, heads, part.text_width, qk_norm=qk_norm) if part.text_width else None
        )
        self.feed_forward = feed_forward
        self.has_experts = isinstance(feed_forward, ExpertLayer)
        self.modulation = part.modulation(6)

    def forward(
        self, x_BND: Tensor, text_BLT: Tensor | None, around: Surroundings
    ) -> tuple[Tensor, Tensor | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(around.modulation_BM).chunk(6, dim=-1)
        attended_BND = self.attention(modulate(normalize(x_BND), shift1, scale1), around.rotation)
        x_BND = x_BND + gate1[:, None] * attended_BND
        if self.cross_attention is not None:
            x_BND = x_BND + self.cross_attention(normalize(x_BND), text_BLT, around.mask_BL)
        y_BND = run_feed_forward(
            self.feed_forward, x_BND, shift2, scale2, around, has_experts=self.has_experts
        )
        return x_BND + gate2[:, None] * y_BND, text_BLT


class JointBlock(nn.Module):
    """Attention among image and text tokens together; the text's own networks are none in the last block."""

    def __init__(
        self, part: BlockParts, feed_forward: nn.Module, text_feed_forward: nn.Module | None
    ) -> None:
        super().__init__()
        is_last = text_feed_forward is None
        self.attention = JointAttention(part.width, part.heads, qk_norm=part.qk_norm, is_last=is_last)
        self.feed_forward = feed_forward
        self.has_experts = isinstance(feed_forward, ExpertLayer)
        self.text_feed_forward = text_feed_forward
        self.modulation = part.modulation(6)
        self.text_count = 2 if is_last else 6
        self.text_modulation = part.modulation(self.text_count)

    def forward(self, x_BND: Tensor, text_BLD: Tensor, around: Surroundings) -> tuple[Tensor, Tensor | None]:
        shift, scale, gate1, shift2, scale2, gate2 = self.modulation(around.modulation_BM).chunk(6, dim=-1)
        text_shift, text_scale, *text_after = self.text_modulation(around.modulation_BM).chunk(
            self.text_count, dim=-1
        )
        attended_BND, text_attended_BLD = self.attention(
            modulate(normalize(x_BND), shift, scale),
            modulate(normalize(text_BLD), text_shift, text_scale),
            around.mask_BL,
            around.rotation,
        )
        x_BND = x_BND + gate1[:, None] * attended_BND
        y_BND = run_feed_forward(
            self.feed_forward, x_BND, shift2, scale2, around, has_experts=self.has_experts
        )
        x_BND = x_BND + gate2[:, None] * y_BND
        if self.text_feed_forward is None:
            return x_BND, None
        gate1, shift2, scale2, gate2 = text_after
        text_BLD = text_BLD + gate1[:, None] * text_attended_BLD
        y_BLD = run_feed_forward(self.text_feed_forward, text_BLD, shift2, scale2, around, has_experts=False)
        return x_BND, text_BLD + gate2[:, None] * y_BLD
