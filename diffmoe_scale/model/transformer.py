"""The DiffMoE transformer: DiT blocks with adaLN-Zero, cross-attention to the caption, and experts in some of
them.

B samples, N tokens a sample, S = B * N, D width, L text tokens, T text width, V pooled text width, Z size
conditions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.encoders.text.text import TextFeatures
from diffmoe_scale.moe.layer import MoELayer, build_moe_layer
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.nn.parts import (
    CrossAttention,
    SelfAttention,
    SizeEmbedding,
    TimestepEmbedding,
    modulate,
    patchify,
    position_embedding_on,
    unpatchify,
)

NUM_SIZE_CONDITIONS = 6
"""Height and width of the original, rows above and columns left of the crop, height and width of the image;
in pixels."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of a noisy batch: its output and, for each MoE layer, which tokens its experts
    took."""

    value_BCHW: Tensor
    routings: list[Routing]


class Block(nn.Module):
    """One DiT block; its feed-forward network is dense or a DiffMoE layer."""

    def __init__(self, config: ModelConfig, *, text_width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.heads)
        self.cross_attention = CrossAttention(width, config.heads, text_width) if text_width else None
        self.feed_forward = feed_forward
        self.recompute_feed_forward = config.activation_checkpointing == "experts"
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x_BND: Tensor,
        time_BD: Tensor,
        text: TextFeatures | None,
        dropped_B: Tensor,
        selection: Selection,
    ) -> tuple[Tensor, Routing | None]:
        width = x_BND.shape[-1:]
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(time_BD)).chunk(6, dim=-1)
        x_BND = x_BND + gate1[:, None] * self.attention(
            modulate(F.layer_norm(x_BND, width, eps=1e-6), shift1, scale1)
        )
        if self.cross_attention is not None:
            assert text is not None
            x_BND = x_BND + self.cross_attention(
                F.layer_norm(x_BND, width, eps=1e-6), text.tokens_BLT, text.mask_BL
            )
        normed_BND = F.layer_norm(x_BND, width, eps=1e-6)
        modulated_BND = modulate(normed_BND, shift2, scale2)
        if self.recompute_feed_forward and torch.is_grad_enabled():
            y_BND, routing = checkpoint(
                self._feed_forward,
                modulated_BND,
                normed_BND,
                time_BD,
                dropped_B,
                selection,
                use_reentrant=False,
            )
        else:
            y_BND, routing = self._feed_forward(modulated_BND, normed_BND, time_BD, dropped_B, selection)
        return x_BND + gate2[:, None] * y_BND, routing

    def _feed_forward(
        self,
        modulated_BND: Tensor,
        normed_BND: Tensor,
        time_BD: Tensor,
        dropped_B: Tensor,
        selection: Selection,
    ) -> tuple[Tensor, Routing | None]:
        if not isinstance(self.feed_forward, MoELayer):
            return self.feed_forward(modulated_BND), None
        context = RoutingContext(
            num_samples=modulated_BND.shape[0],
            unmodulated_SD=normed_BND.flatten(0, 1),
            time_BD=time_BD,
            dropped_B=dropped_B,
            selection=selection,
        )
        y_SD, routing = self.feed_forward(modulated_BND.flatten(0, 1), context)
        return y_SD.view_as(modulated_BND), routing


class DiffusionTransformer(nn.Module):
    """The network of the paper. `text_width` 0 leaves out cross-attention (class-conditional mode).

    Draws its weights from torch's global generator, experts from (seed, block, global expert index).
    """

    def __init__(
        self,
        config: ModelConfig,
        moe: MoEConfig,
        *,
        latent_size: int,
        output_channels: int,
        text_width: int,
        pooled_width: int,
        seed: int,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        if latent_size % patch != 0:
            raise ValueError(
                f"model.patch_size is {patch} but latents are {latent_size} wide; choose a divisor of {latent_size}"
            )
        self.patch = patch
        self.base = latent_size // patch
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.patch_embedding = nn.Linear(config.channels * patch * patch, width)
        self.time_embedding = TimestepEmbedding(width)
        self.pooled_projection = nn.Linear(pooled_width, width) if pooled_width else None
        self.class_embedding = (
            nn.Embedding(config.num_classes + 1, width) if config.conditioning == "class" else None
        )
        self.size_embedding = SizeEmbedding(NUM_SIZE_CONDITIONS, width) if config.size_conditioning else None
        self.blocks = nn.ModuleList()
        for index in range(config.depth):
            has_experts = moe.num_experts > 0 and index % moe.every == moe.every - 1
            feed_forward = (
                build_moe_layer(moe, width=width, layer_index=index, seed=seed, groups=groups)
                if has_experts
                else FeedForward(
                    width,
                    round(config.feed_forward_ratio * width),
                    is_gated=moe.activation == "swiglu",
                    generator=named_generator(seed, index, "feed_forward"),
                )
            )
            self.blocks.append(Block(config, text_width=text_width, feed_forward=feed_forward))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_projection = nn.Linear(width, patch * patch * output_channels)
        self._initialize()

    def _initialize(self) -> None:
        """DiT's: Xavier for matrices, zero for biases, modulations, cross-attention's output and the last
        layer.

        Feed-forward networks, dense or of experts, initialized themselves.
        """
        initialized = {id(module) for block in self.blocks for module in block.feed_forward.modules()}  # type: ignore[union-attr]  # ModuleList's items are typed as Module
        for module in self.modules():
            if not isinstance(module, nn.Linear) or id(module) in initialized:
                continue
            if module not in (self.time_embedding.mlp[0], self.time_embedding.mlp[2]):
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        zeroed = [self.final_modulation, self.final_projection] + (
            [self.size_embedding.output] if self.size_embedding else []
        )
        for block in self.blocks:
            assert isinstance(block, Block)
            zeroed += [block.modulation] + (
                [block.cross_attention.projection] if block.cross_attention else []
            )
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def moe_layers(self) -> list[MoELayer]:
        """The MoE layers, first block first; `Prediction.routings` is in this order."""
        return [
            block.feed_forward
            for block in self.blocks
            if isinstance(block, Block) and isinstance(block.feed_forward, MoELayer)
        ]

    def forward(
        self,
        x_BCHW: Tensor,
        time_B: Tensor,
        *,
        text: TextFeatures | None,
        labels_B: Tensor | None,
        dropped_B: Tensor,
        selection: Selection,
        sizes_BZ: Tensor | None = None,
    ) -> Prediction:
        """`time_B` is what the timestep embedding sees (`Objective.embedding_time`); `sizes_BZ` is for
        `model.size_conditioning`.

        Height and width may be any multiples of the patch.
        """
        rows, columns = (length // self.patch for length in x_BCHW.shape[2:])
        assert x_BCHW.shape[2:] == (rows * self.patch, columns * self.patch), (
            f"{tuple(x_BCHW.shape)} is cut into patches of {self.patch}"
        )
        weight = self.patch_embedding.weight
        dtype = weight.dtype
        position_ND = position_embedding_on(weight.device, rows, columns, weight.shape[0], self.base)
        x_BND = self.patch_embedding(patchify(x_BCHW.to(dtype), self.patch)) + position_ND.to(dtype)
        time_BD = self.time_embedding(time_B)
        if text is not None:
            # A frozen encoder stays in fp32, whatever the format of the model.
            text = TextFeatures(text.tokens_BLT.to(dtype), text.mask_BL, text.pooled_BV.to(dtype))
        if self.pooled_projection is not None:
            assert text is not None
            time_BD = time_BD + self.pooled_projection(text.pooled_BV)
        if self.class_embedding is not None:
            time_BD = time_BD + self.class_embedding(labels_B)
        if self.size_embedding is not None:
            assert sizes_BZ is not None
            time_BD = time_BD + self.size_embedding(sizes_BZ)
        routings = []
        for block in self.blocks:
            if self.recompute_blocks and torch.is_grad_enabled():
                x_BND, routing = checkpoint(
                    block, x_BND, time_BD, text, dropped_B, selection, use_reentrant=False
                )
            else:
                x_BND, routing = block(x_BND, time_BD, text, dropped_B, selection)
            if routing is not None:
                routings.append(routing)
        shift_BD, scale_BD = self.final_modulation(F.silu(time_BD)).chunk(2, dim=-1)
        y_BNP = self.final_projection(
            modulate(F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6), shift_BD, scale_BD)
        )
        # Losses and samplers compute in fp32: differences of nearly equal images.
        return Prediction(unpatchify(y_BNP.float(), patch=self.patch, rows=rows, columns=columns), routings)
