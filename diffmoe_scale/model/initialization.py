"""The first weights of a network: from `run.seed` alone, the same on every rank and for every layout."""

from torch import nn

from diffmoe_scale.model.block import Block
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.generator import draw_defaults, named_generator, seeded


def initialize_weights(denoiser: Denoiser, seed: int) -> None:
    """Memory on the CPU, and weights, for a denoiser that was built on `meta`."""
    denoiser.to_empty(device="cpu")
    if denoiser.text_encoder is not None:
        denoiser.text_encoder.initialize(seed)
    initialize_transformer(denoiser.transformer, seed)


def initialize_transformer(transformer: DiffusionTransformer, seed: int) -> None:
    """DiT's: Xavier for matrices, zero for biases, modulations, cross-attention's output and the last layer.

    Feed-forward networks draw from generators of their own, experts from (seed, block, global index).
    """
    with seeded(seed):
        # torch's own come first, so that a seed's weights are those of earlier versions.
        for part in _parts(transformer):
            if part is transformer.time_embedding:
                transformer.time_embedding.initialize()
            else:
                draw_defaults(part)
        for part in _parts(transformer):
            if part is not transformer.time_embedding:
                _draw_xavier(part)
        if transformer.class_embedding is not None:
            nn.init.normal_(transformer.class_embedding.weight, std=0.02)
    for layer in _zero_layers(transformer):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for index, block in enumerate(transformer.blocks):
        assert isinstance(block, Block)
        if isinstance(block.feed_forward, MoELayer):
            block.feed_forward.initialize(seed)
        else:
            assert isinstance(block.feed_forward, FeedForward)
            block.feed_forward.initialize(named_generator(seed, index, "feed_forward"))


def _parts(transformer: DiffusionTransformer) -> list[nn.Module]:
    """Everything but the feed-forward networks, in order."""
    parts: list[nn.Module] = []
    for child in transformer.children():
        if child is not transformer.blocks:
            parts.append(child)
            continue
        for block in transformer.blocks:
            parts += [part for part in block.children() if part is not block.feed_forward]
    return parts


def _draw_xavier(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _zero_layers(transformer: DiffusionTransformer) -> list[nn.Linear]:
    layers = [transformer.final_modulation, transformer.final_projection]
    if transformer.size_embedding is not None:
        layers.append(transformer.size_embedding.output)
    for block in transformer.blocks:
        assert isinstance(block, Block)
        layers.append(block.modulation)
        if block.cross_attention is not None:
            layers.append(block.cross_attention.projection)
    return layers
