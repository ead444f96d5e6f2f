"""The DiffMoE transformer: DiT blocks with adaLN-Zero, which attend to the caption across or jointly, and
experts in some of them.

B samples, N tokens a sample, D width, Z size conditions.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.encoders.text.features import StreamWidths, TextStream
from diffmoe_scale.model.block import Block, BlockContext, build_modulation
from diffmoe_scale.model.build import build_block
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS, Condition
from diffmoe_scale.model.joint_block import JointBlock
from diffmoe_scale.model.text import build_text_projections, join_streams, joined_width
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.nn.embeddings import SizeEmbedding, TimestepEmbedding, position_embedding_on
from diffmoe_scale.nn.modulation import Modulation
from diffmoe_scale.nn.norms import modulate, normalize
from diffmoe_scale.nn.patches import patchify, unpatchify
from diffmoe_scale.nn.rope import Rotation, own_rotation, rotation_2d_on
from diffmoe_scale.nn.sequence import gather_tokens, own_tokens


@dataclass(frozen=True)
class Prediction:
    """What the network says of a noisy batch: its output and, for each MoE layer, which tokens its experts
    took."""

    value_BCHW: Tensor
    routings: list[Routing]
    aligned_BND: Tensor | None = None
    """Tokens after block `aligned_block`, where that is set."""
    layer_values: list[Tensor] = field(default_factory=list)
    """What the routers of MoE layers make of it themselves (Expert Race, in training), each as `value`."""
    layer_weight: float = 0.0
    """Of the mean of their losses."""


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
        edge_tokens = latent_size // patch
        self.base = config.position_grid(edge_tokens)
        self.token_pixels = (config.image_size // edge_tokens) ** 2
        self.rotated_width = width // config.heads if config.positions == "rope2d" else 0
        self.aligned_block = 0
        """The block (1 is the first) whose tokens `forward` answers, for alignment in training; 0 is none."""
        self.classes = config.num_classes
        self.target_weight = moe.target_weight
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.patch_embedding = nn.Linear(config.channels * patch * patch, width)
        self.time_embedding = TimestepEmbedding(width, reaches_end=config.time_frequencies == "diffusers")
        self.text_projections = build_text_projections(config, text_streams)
        pooled_width = sum(stream.pooled for stream in text_streams)
        self.pooled_projection = nn.Linear(pooled_width, width) if pooled_width else None
        self.class_embedding = (
            nn.Embedding(config.num_classes + 1, width) if config.conditioning == "class" else None
        )
        self.size_embedding = SizeEmbedding(NUM_SIZE_CONDITIONS, width) if config.size_conditioning else None
        self.shared_modulation = Modulation(width, 6) if config.modulation == "shared" else None
        self.blocks = nn.ModuleList(
            build_block(
                config,
                moe,
                index=index,
                text_width=joined_width(config, text_streams),
                groups=groups,
                target_width=patch * patch * output_channels,
            )
            for index in range(config.depth)
        )
        self.final_modulation = build_modulation(config, 2)
        self.final_projection = nn.Linear(width, patch * patch * output_channels)

    def moe_layers(self) -> list[MoELayer]:
        """The MoE layers, first block first; `Prediction.routings` is in this order."""
        return [
            block.feed_forward
            for block in self.blocks
            if isinstance(block, Block | JointBlock) and isinstance(block.feed_forward, MoELayer)
        ]

    def forward(
        self,
        x_BCHW: Tensor,
        time_B: Tensor,
        condition: Condition,
        selection: Selection,
        sequence_group: dist.ProcessGroup | None = None,
    ) -> Prediction:
        """`time_B` is what the timestep embedding sees (`Objective.embedding_time`).

        Height and width may be any multiples of the patch. The ranks of `sequence_group` are given the same
        batch, compute a part of its tokens each, and get the whole answer. Collective over it.
        """
        rows, columns = (length // self.patch for length in x_BCHW.shape[2:])
        assert x_BCHW.shape[2:] == (rows * self.patch, columns * self.patch), (
            f"{tuple(x_BCHW.shape)} is cut into patches of {self.patch}"
        )
        dtype = self.patch_embedding.weight.dtype
        patches_BNP = own_tokens(patchify(x_BCHW.to(dtype), self.patch), sequence_group, dim=1)
        x_BND = self.patch_embedding(patches_BNP)
        text = None if condition.text is None else join_streams(condition.text, self.text_projections, dtype)
        time_BD = self._embed_condition(time_B, condition, text)
        context = BlockContext(
            time_BD=time_BD,
            modulation_BM=time_BD if self.shared_modulation is None else self.shared_modulation(time_BD),
            text_mask_BL=None if text is None else text.mask_BL,
            rotation=self._rotation(rows, columns, sequence_group),
            selection=selection,
            image_pixels=rows * columns * self.token_pixels,
            dropped_B=condition.unconditional(self.classes),
            sequence_group=sequence_group,
        )
        if context.rotation is None:
            x_BND = x_BND + own_tokens(self._position_embedding(rows, columns), sequence_group, dim=0)
        x_BND, routings, aligned_BND = self._run_blocks(
            x_BND, None if text is None else text.tokens_BLT, context
        )
        y_BNP = self._final_layer(x_BND, time_BD)
        # Losses and samplers compute in fp32: differences of nearly equal images.
        values = [y_BNP.float()]
        targets = [routing.target_SW for routing in routings if routing.target_SW is not None]
        values += [target_SW.unflatten(0, y_BNP.shape[:2]) for target_SW in targets]
        value_BCHW, *layer_values = (
            unpatchify(gather_tokens(value_BNP, sequence_group), patch=self.patch, rows=rows, columns=columns)
            for value_BNP in values
        )
        if aligned_BND is not None:
            aligned_BND = gather_tokens(aligned_BND, sequence_group)
        return Prediction(value_BCHW, routings, aligned_BND, layer_values, self.target_weight)

    def _position_embedding(self, rows: int, columns: int) -> Tensor:
        weight = self.patch_embedding.weight
        position_ND = position_embedding_on(weight.device, rows, columns, weight.shape[0], self.base)
        return position_ND.to(weight.dtype)

    def _rotation(self, rows: int, columns: int, sequence_group: dist.ProcessGroup | None) -> Rotation | None:
        if self.rotated_width == 0:
            return None
        device = self.patch_embedding.weight.device
        rotation = rotation_2d_on(device, rows, columns, self.rotated_width, self.base)
        return own_rotation(rotation, sequence_group)

    def _run_blocks(
        self, x_BND: Tensor, text_BLT: Tensor | None, context: BlockContext
    ) -> tuple[Tensor, list[Routing], Tensor | None]:
        routings, aligned_BND = [], None
        for number, block in enumerate(self.blocks, start=1):
            if self.recompute_blocks and torch.is_grad_enabled():
                x_BND, text_BLT, routing = checkpoint(block, x_BND, text_BLT, context, use_reentrant=False)
            else:
                x_BND, text_BLT, routing = block(x_BND, text_BLT, context)
            if routing is not None:
                routings.append(routing)
            if number == self.aligned_block:
                aligned_BND = x_BND
        return x_BND, routings, aligned_BND

    def _final_layer(self, x_BND: Tensor, time_BD: Tensor) -> Tensor:
        """Patches [B, N, P]. With a shared modulation the last table is added to the embedding itself
        (PixArt-alpha's T2IFinalLayer)."""
        modulated_BM = time_BD if self.shared_modulation is None else time_BD.repeat(1, 2)
        shift_BD, scale_BD = self.final_modulation(modulated_BM).chunk(2, dim=-1)
        y_BNP: Tensor = self.final_projection(modulate(normalize(x_BND), shift_BD, scale_BD))
        return y_BNP

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
