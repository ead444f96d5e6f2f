"""The DiffMoE transformer: DiT blocks with adaLN-Zero, cross-attention to the caption, and experts in some of
them.

B samples, N tokens a sample, D width, Z size conditions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.encoders.text.features import StreamWidths, TextStream
from diffmoe_scale.model.block import Block
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS, Condition
from diffmoe_scale.model.text import build_text_projections, join_streams, joined_width
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.nn.embeddings import SizeEmbedding, TimestepEmbedding, position_embedding_on
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.norms import modulate, normalize
from diffmoe_scale.nn.patches import patchify, unpatchify


@dataclass(frozen=True)
class Prediction:
    """What the network says of a noisy batch: its output and, for each MoE layer, which tokens its experts
    took."""

    value_BCHW: Tensor
    routings: list[Routing]


class DiffusionTransformer(nn.Module):
    """The network of the paper. Without `text_streams` it has no cross-attention (class-conditional mode).

    The constructor draws no weights (`initialization.initialize_transformer` does): it can run on `meta`.
    """

    def __init__(
        self,
        config: ModelConfig,
        moe: MoEConfig,
        *,
        latent_size: int,
        output_channels: int,
        text_streams: tuple[StreamWidths, ...],
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        if latent_size % patch != 0:
            raise ValueError(
                f"model.patch_size is {patch} but latents are {latent_size} wide; "
                f"choose a divisor of {latent_size}"
            )
        self.patch = patch
        self.base = latent_size // patch
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.patch_embedding = nn.Linear(config.channels * patch * patch, width)
        self.time_embedding = TimestepEmbedding(width)
        self.text_projections = build_text_projections(config, text_streams)
        pooled_width = sum(stream.pooled for stream in text_streams)
        self.pooled_projection = nn.Linear(pooled_width, width) if pooled_width else None
        self.class_embedding = (
            nn.Embedding(config.num_classes + 1, width) if config.conditioning == "class" else None
        )
        self.size_embedding = SizeEmbedding(NUM_SIZE_CONDITIONS, width) if config.size_conditioning else None
        self.blocks = nn.ModuleList(
            Block(
                config,
                text_width=joined_width(config, text_streams),
                feed_forward=build_feed_forward(config, moe, block_index=index, groups=groups),
            )
            for index in range(config.depth)
        )
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_projection = nn.Linear(width, patch * patch * output_channels)

    def moe_layers(self) -> list[MoELayer]:
        """The MoE layers, first block first; `Prediction.routings` is in this order."""
        return [
            block.feed_forward
            for block in self.blocks
            if isinstance(block, Block) and isinstance(block.feed_forward, MoELayer)
        ]

    def forward(
        self, x_BCHW: Tensor, time_B: Tensor, condition: Condition, selection: Selection
    ) -> Prediction:
        """`time_B` is what the timestep embedding sees (`Objective.embedding_time`).

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
        text = None if condition.text is None else join_streams(condition.text, self.text_projections, dtype)
        time_BD = self._embed_condition(time_B, condition, text)
        routings = []
        for block in self.blocks:
            if self.recompute_blocks and torch.is_grad_enabled():
                x_BND, routing = checkpoint(block, x_BND, time_BD, text, selection, use_reentrant=False)
            else:
                x_BND, routing = block(x_BND, time_BD, text, selection)
            if routing is not None:
                routings.append(routing)
        shift_BD, scale_BD = self.final_modulation(F.silu(time_BD)).chunk(2, dim=-1)
        y_BNP = self.final_projection(modulate(normalize(x_BND), shift_BD, scale_BD))
        # Losses and samplers compute in fp32: differences of nearly equal images.
        return Prediction(unpatchify(y_BNP.float(), patch=self.patch, rows=rows, columns=columns), routings)

    def _embed_condition(self, time_B: Tensor, condition: Condition, text: TextStream | None) -> Tensor:
        """What modulates every block, [B, D]: the embeddings of time, pooled caption, class and sizes."""
        time_BD: Tensor = self.time_embedding(time_B)
        if self.pooled_projection is not None:
            assert text is not None and text.pooled_BV is not None
            time_BD = time_BD + self.pooled_projection(text.pooled_BV)
        if self.class_embedding is not None:
            time_BD = time_BD + self.class_embedding(condition.labels_B)
        if self.size_embedding is not None:
            assert condition.sizes_BZ is not None
            time_BD = time_BD + self.size_embedding(condition.sizes_BZ)
        return time_BD


def build_feed_forward(
    config: ModelConfig, moe: MoEConfig, *, block_index: int, groups: ProcessGroupCollection
) -> nn.Module:
    """The MoE layer of every `moe.every`-th block, the dense network of the others."""
    if moe.num_experts > 0 and block_index % moe.every == moe.every - 1:
        return MoELayer(moe, width=config.width, layer_index=block_index, groups=groups)
    hidden = round(config.feed_forward_ratio * config.width)
    if hidden < 1:
        raise ValueError(
            f"model.feed_forward_ratio is {config.feed_forward_ratio}, which makes networks of model.width "
            f"{config.width} {hidden} wide; choose at least {1 / config.width:.4g}"
        )
    return FeedForward(config.width, hidden, is_gated=moe.activation == "swiglu")
