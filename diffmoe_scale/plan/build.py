"""What is trained, on `meta`: names and shapes of any size without memory or weights."""

from dataclasses import replace

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.encoders.text.features import TextFeatures, TextStream
from diffmoe_scale.encoders.text.tokenizer import END, Tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS, Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.networks import build_transformer, check_sizes
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.plan.assumed import latents_of, streams_of

META = torch.device("meta")


def build_denoiser(config: Config, groups: ProcessGroupCollection | None = None) -> Denoiser:
    """The denoiser of a config on `meta`, in fp32; with `groups`, the experts of its first rank.

    A vocabulary counts whole (`text.vocabulary`): the tokenizer of a run may find fewer pieces.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other, or files of frozen
    networks are missing.
    """
    channels, factor = latents_of(config.autoencoder, channels=config.model.channels)
    check_sizes(config, channels=channels, factor=factor)
    transformer = build_transformer(
        config,
        latent_size=config.model.image_size // factor,
        output_channels=build_objective(config.diffusion).output_channels(channels),
        text_streams=streams_of(config.text) if config.model.conditioning == "text" else (),
        groups=groups or single_rank_groups(),
    )
    return Denoiser(transformer, _trained_encoder(config), trained_stream=config.text.trained_stream)


def _trained_encoder(config: Config) -> TrainedTextEncoder | None:
    encoder = config.text.trained
    if config.model.conditioning != "text" or encoder is None:
        return None
    no_tokenizer = Tokenizer(lambda captions: [], start=[], end=[END], max_tokens=encoder.max_tokens)
    with META:
        return TrainedTextEncoder(config.text, no_tokenizer, vocabulary=config.text.vocabulary)


def plain_experts(config: Config) -> Config:
    """The config with expert GEMMs as a plain loop, which needs no GPU and has the parameters and products of
    every other backend."""
    return replace(config, moe=replace(config.moe, backend="loop", precision="model"))


def even_routing(config: Config) -> Config:
    """The config with pools of a rank, whose experts take equally many of its tokens: what others give on
    average. (On `meta` no router knows what it takes, and gives every expert a fair share.)"""
    moe = config.moe
    if moe.pool in ("expert_parallel", "data_parallel"):
        moe = replace(moe, pool="rank")
    return replace(config, moe=moe)


def keep_distinct_blocks(network: Denoiser) -> list[int]:
    """Leave out the blocks that are built as an earlier one is. Which of those that are left each block was
    built as."""
    kinds: dict[object, tuple[int, nn.Module]] = {}
    order = []
    for block in network.transformer.blocks:
        modules = tuple((name, type(module)) for name, module in block.named_modules())
        shapes = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
        order.append(kinds.setdefault((modules, shapes), (len(kinds), block))[0])
    network.transformer.blocks = nn.ModuleList(block for _, block in kinds.values())
    return order


def latent_shape(config: Config) -> tuple[int, int, int]:
    """[C, H, W] of the latents of an image of `model.image_size`."""
    channels, factor = latents_of(config.autoencoder, channels=config.model.channels)
    size = config.model.image_size // factor
    return channels, size, size


def tokens_per_picture(config: Config) -> int:
    """Of an image of `model.image_size`."""
    _, height, width = latent_shape(config)
    return height // config.model.patch_size * (width // config.model.patch_size)


def step_inputs(config: Config, num_samples: int) -> tuple[Tensor, Tensor, Condition]:
    """Noisy latents, times and condition of a micro-batch, on `meta`; captions of full length."""
    shape = latent_shape(config)
    is_text = config.model.conditioning == "text"
    with META:
        x_BCHW, time_B = torch.empty(num_samples, *shape), torch.empty(num_samples)
        condition = Condition(
            labels_B=None if is_text else torch.empty(num_samples, dtype=torch.int64),
            sizes_BZ=torch.empty(num_samples, NUM_SIZE_CONDITIONS),
            dropped_B=torch.empty(num_samples, dtype=torch.bool),
        )
        trained = config.text.trained if is_text else None
        if trained is not None:
            tokens_BL = torch.empty(num_samples, trained.max_tokens, dtype=torch.int64)
            condition = replace(condition, tokens_BL=tokens_BL)
        if is_text and (text := _frozen_features(config, num_samples)).streams:
            condition = replace(condition, text=text)
    return x_BCHW, time_B, condition


def real_inputs(config: Config, count: int) -> tuple[Tensor, Condition]:
    """Latents and condition as `step_inputs` has them on `meta`, with values."""
    _, _, condition = step_inputs(config, count)
    latents_BCHW = torch.randn(count, *latent_shape(config))
    labels_B = None if condition.labels_B is None else torch.zeros(count, dtype=torch.int64)
    tokens_BL = None if condition.tokens_BL is None else torch.full(condition.tokens_BL.shape, 5)
    text = None if condition.text is None else condition.text.map(_valued)
    sizes_BZ = torch.zeros(count, NUM_SIZE_CONDITIONS)
    dropped_B = torch.zeros(count, dtype=torch.bool)
    return latents_BCHW, Condition(labels_B, sizes_BZ, text=text, tokens_BL=tokens_BL, dropped_B=dropped_B)


def _valued(tensor: Tensor) -> Tensor:
    """Noise, or True, of a tensor's shape."""
    if tensor.dtype == torch.bool:
        return torch.ones(tensor.shape, dtype=torch.bool)
    return torch.randn(tensor.shape)


def _frozen_features(config: Config, num_samples: int) -> TextFeatures:
    """On the default device."""
    return TextFeatures(
        tuple(
            TextStream(
                tokens_BLT=torch.empty(num_samples, encoder.max_tokens, widths.token),
                mask_BL=torch.empty(num_samples, encoder.max_tokens, dtype=torch.bool),
                pooled_BV=torch.empty(num_samples, widths.pooled) if widths.pooled else None,
            )
            for encoder, widths in zip(config.text.listed(), streams_of(config.text), strict=True)
            if encoder.kind != "sentencepiece"
        )
    )
