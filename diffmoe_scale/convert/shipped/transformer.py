"""The DiffMoE transformer as a model of diffusers, for inference.

B samples, N tokens a sample, D width, L text tokens, T text width, V pooled width, Z size conditions.
"""

from collections.abc import Mapping, Sequence
from typing import Any  # JSON

from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from diffmoe_scale.convert.shipped.blocks import BlockParts, CrossBlock, JointBlock, Surroundings
from diffmoe_scale.convert.shipped.checked import CheckedModel
from diffmoe_scale.convert.shipped.experts import ExpertLayer
from diffmoe_scale.convert.shipped.routers import WITH_THRESHOLDS, Choice, ExpertSettings
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures, TextStream
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS
from diffmoe_scale.model.text import TextProjection, join_streams
from diffmoe_scale.nn.attention import HeadNorm
from diffmoe_scale.nn.embeddings import SizeEmbedding, TimestepEmbedding, position_embedding_on
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.modulation import Modulation
from diffmoe_scale.nn.norms import modulate, normalize
from diffmoe_scale.nn.patches import patchify, unpatchify
from diffmoe_scale.nn.rope import Rotation, rotation_2d_on

NUM_STEPS = 1000
"""Of the diffusion process of DDPM."""


def build_network(
    settings: ExpertSettings | None, block: int, width: int, hidden_width: int, *, is_gated: bool
) -> nn.Module:
    """A block's experts, or its dense network."""
    if settings is None or block not in settings.blocks:
        return FeedForward(width, hidden_width, is_gated=is_gated)
    number = list(settings.blocks).index(block)
    return ExpertLayer(settings, width, number=number, is_gated=is_gated)


class DiffMoETransformer2DModel(CheckedModel):
    """Noisy latents, time and condition to what `diffusion.prediction` says: the velocity noise - x_0, or x_0
    itself; under `ddpm` noise and the place of the log variance, 2 C channels."""

    _no_split_modules: Any = ("CrossBlock", "JointBlock")
    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        sample_size: int,
        patch_size: int,
        depth: int,
        width: int,
        heads: int,
        hidden_width: int,
        image_size: int,
        attention: str = "cross",
        qk_norm: HeadNorm = "none",
        positions: str = "sincos",
        position_size: int = 0,
        modulation: str = "block",
        time_frequencies: str = "dit",
        is_gated: bool = False,
        num_classes: int = 0,
        size_conditioning: bool = False,
        text_streams: Sequence[Sequence[int]] = (),
        text_projection: bool = False,
        experts: Mapping[str, Any] | None = None,
        diffusion: Mapping[str, Any],
        auto_map: Mapping[str, str] | None = None,
    ) -> None:
        """`sample_size` is the side of the latents of pictures of `image_size` pixels, `position_size` (0:
        the same) that of pictures by whose tokens places are counted; `text_streams` are the widths of each
        encoder's tokens and of its pooled feature (0 without). `auto_map` is AutoModel's."""
        super().__init__()
        self.patch, num_tokens = patch_size, sample_size // patch_size
        self.base = num_tokens * (position_size or image_size) // image_size
        self.token_pixels = (image_size // num_tokens) ** 2
        self.rotated_width = width // heads if positions == "rope2d" else 0
        self.patch_embedding = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimestepEmbedding(width, reaches_end=time_frequencies == "diffusers")
        streams = [StreamWidths("", token, pooled) for token, pooled in text_streams]
        self.text_projections = (
            nn.ModuleList(TextProjection(stream, width) for stream in streams) if text_projection else None
        )
        pooled_width = sum(stream.pooled for stream in streams)
        self.pooled_projection = nn.Linear(pooled_width, width) if pooled_width else None
        self.class_embedding = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.size_embedding = SizeEmbedding(NUM_SIZE_CONDITIONS, width) if size_conditioning else None
        is_shared = modulation == "shared"
        self.shared_modulation = Modulation(width, 6) if is_shared else None
        text_width = (width if text_projection else streams[0].token) if streams else 0
        part = BlockParts(width, heads, qk_norm, text_width, is_shared)
        settings = None if experts is None else ExpertSettings(**experts)
        self.blocks = nn.ModuleList()
        for block in range(depth):
            network = build_network(settings, block, width, hidden_width, is_gated=is_gated)
            if attention == "cross":
                self.blocks.append(CrossBlock(part, network))
                continue
            text_dense = FeedForward(width, hidden_width, is_gated=is_gated)
            self.blocks.append(JointBlock(part, network, text_dense if block < depth - 1 else None))
        self.final_modulation = part.modulation(2)
        self.final_projection = nn.Linear(width, patch_size**2 * out_channels)

    def embedding_time(self, t_B: Tensor) -> Tensor:
        """What the timestep's embedding sees of t in [0, 1]."""
        if self.config.diffusion["kind"] == "ddpm":
            return (t_B * NUM_STEPS).round() - 1
        return self.config.diffusion["time_scale"] * t_B

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Sequence[tuple[Tensor, Tensor, Tensor | None]] = (),
        class_labels: Tensor | None = None,
        sizes: Tensor | None = None,
        selection: str = "",
        gamma: float = 0.5,
        capacity: float = 0.0,
        dropped: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The output [B, C, H, W] for noisy latents [B, C, H, W] at times `timestep` [B], t from 0 (data) to
        1 (noise).

        `text` has tokens [B, L, T], their mask [B, L] and the pooled feature [B, V] or None of each encoder;
        `class_labels` are [B], `sizes` of the pictures [B, Z]. How experts choose is said by `selection`,
        `gamma` and `capacity` (Choice); "" is `threshold`, without thresholds `static`. `dropped` [B] tells
        which samples have no caption, for the routers of ProMoE.
        """
        has_thresholds = self.config.experts is None or self.config.experts["router"] in WITH_THRESHOLDS
        choice = Choice(selection or ("threshold" if has_thresholds else "static"), gamma, capacity)
        if class_labels is not None and self.config.num_classes:
            dropped = class_labels == self.config.num_classes
        rows, columns = (length // self.patch for length in hidden_states.shape[2:])
        if hidden_states.shape[2:] != (rows * self.patch, columns * self.patch):
            raise ValueError(f"{tuple(hidden_states.shape)} cannot be cut into patches of {self.patch}")
        dtype, device = self.patch_embedding.weight.dtype, hidden_states.device
        streams = TextFeatures(tuple(TextStream(*stream) for stream in text))
        stream = join_streams(streams, self.text_projections, dtype) if text else None
        time_BD = self._embed_condition(timestep, stream, class_labels, sizes)
        rotation: Rotation | None = None
        x_BND = self.patch_embedding(patchify(hidden_states.to(dtype), self.patch))
        if self.rotated_width:
            rotation = rotation_2d_on(device, rows, columns, self.rotated_width, self.base)
        else:
            position_ND = position_embedding_on(device, rows, columns, x_BND.shape[-1], self.base)
            x_BND = x_BND + position_ND.to(dtype)
        around = Surroundings(
            time_BD=time_BD,
            modulation_BM=time_BD if self.shared_modulation is None else self.shared_modulation(time_BD),
            mask_BL=None if stream is None else stream.mask_BL,
            rotation=rotation,
            choice=choice,
            image_pixels=rows * columns * self.token_pixels,
            dropped_B=dropped,
        )
        text_BLT = None if stream is None else stream.tokens_BLT
        for block in self.blocks:
            x_BND, text_BLT = block(x_BND, text_BLT, around)
        # With a shared modulation the last table is added to the embedding itself.
        modulated_BM = time_BD if self.shared_modulation is None else time_BD.repeat(1, 2)
        shift_BD, scale_BD = self.final_modulation(modulated_BM).chunk(2, dim=-1)
        y_BNP = self.final_projection(modulate(normalize(x_BND), shift_BD, scale_BD))
        sample = unpatchify(y_BNP.float(), patch=self.patch, rows=rows, columns=columns)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed_condition(
        self, t_B: Tensor, text: TextStream | None, labels_B: Tensor | None, sizes_BZ: Tensor | None
    ) -> Tensor:
        """What modulates every block, [B, D]. Raises: ValueError for a condition that is missing."""
        time_BD: Tensor = self.time_embedding(self.embedding_time(t_B))
        if self.pooled_projection is not None:
            if text is None or text.pooled_BV is None:
                raise ValueError("text is missing, or has no pooled feature")
            time_BD = time_BD + self.pooled_projection(text.pooled_BV)
        if self.class_embedding is not None:
            if labels_B is None:
                raise ValueError("class_labels are missing: the model is one of classes")
            time_BD = time_BD + self.class_embedding(labels_B)
        if self.size_embedding is not None:
            if sizes_BZ is None:
                raise ValueError("sizes are missing: the model sees the sizes of pictures")
            time_BD = time_BD + self.size_embedding(sizes_BZ)
        return time_BD
