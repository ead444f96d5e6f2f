"""The first weights of a network: from `run.seed` alone, the same on every rank and for every layout."""

from torch import nn

from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.nn.attention import CrossAttention
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.generator import draw_defaults, named_generator, seeded
from diffmoe_scale.nn.modulation import Modulation, ModulationTable


def initialize_weights(denoiser: Denoiser, seed: int) -> None:
    """Memory on the CPU, and weights, for a denoiser that was built on `meta`."""
    denoiser.to_empty(device="cpu")
    if denoiser.text_encoder is not None:
        denoiser.text_encoder.initialize(seed)
    initialize_transformer(denoiser.transformer, seed)


def initialize_transformer(transformer: DiffusionTransformer, seed: int) -> None:
    """DiT's: Xavier for matrices, zero for biases, modulations, cross-attention's output and the last layer.
    A shared modulation and its tables start as PixArt-alpha's do: small, not zero.

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
        if transformer.shared_modulation is not None:
            nn.init.normal_(transformer.shared_modulation.weight, std=0.02)
    for layer in _zero_layers(transformer):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for name, module in transformer.named_modules():
        if isinstance(module, ModulationTable):
            module.initialize(named_generator(seed, name))
    for index, block in enumerate(transformer.blocks):
        for name, part in block.named_children():
            if isinstance(part, MoELayer):
                part.initialize(seed)
            elif isinstance(part, FeedForward):
                part.initialize(named_generator(seed, index, name))


def _parts(transformer: DiffusionTransformer) -> list[nn.Module]:
    """Everything but the feed-forward networks, in order."""
    parts: list[nn.Module] = []
    for child in transformer.children():
        if child is not transformer.blocks:
            parts.append(child)
            continue
        for block in transformer.blocks:
            parts += [part for part in block.children() if not isinstance(part, FeedForward | MoELayer)]
    return parts


def _draw_xavier(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _zero_layers(transformer: DiffusionTransformer) -> list[nn.Linear]:
    layers = [transformer.final_projection]
    if transformer.size_embedding is not None:
        layers.append(transformer.size_embedding.output)
    for module in transformer.modules():
        if isinstance(module, CrossAttention):
            layers.append(module.projection)
        elif isinstance(module, Modulation) and module is not transformer.shared_modulation:
            layers.append(module)
    return layers
