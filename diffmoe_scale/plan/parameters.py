"""How large the network of a config is: counted on `meta`, without its memory or its weights."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.matrices import hidden_matrices
from diffmoe_scale.plan.build import build_denoiser, plain_experts, tokens_per_picture
from diffmoe_scale.plan.parts import part_of


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a network over all ranks, the text encoder that is trained along among them."""

    total: int
    activated: int
    """What an average token passes through: all but experts, and of those `moe.capacity` (or `moe.top_k`) of
    each layer (DiffMoE eq. 40)."""
    experts: int
    """Experts of each MoE layer; 0 for a dense network."""
    moe_layers: int
    matrices: int
    """Parameters of the hidden layers' matrices, which Muon updates with `optimizer.kind` 'muon'."""
    tokens_per_picture: int
    by_part: dict[str, int]
    """Parameters by part (`parts.PARTS`)."""


def count_parameters(config: Config) -> ModelSize:
    """The size of a config's network, in a second whatever the size.

    A vocabulary counts whole (`text.vocabulary`): the tokenizer of a run may find fewer pieces.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other, or files of frozen
    networks are missing.
    """
    network = build_denoiser(plain_experts(config))
    parts, matrices = count_parts(network), hidden_matrices(network)
    total, num_experts = parts.total(), config.moe.num_experts
    unused_share = 1 - config.moe.experts_a_token / num_experts if num_experts else 0.0
    return ModelSize(
        total=total,
        activated=total - round(unused_share * parts["experts"]),
        experts=num_experts,
        moe_layers=len(network.moe_layers()),
        matrices=sum(parameter.numel() for parameter in network.parameters() if id(parameter) in matrices),
        tokens_per_picture=tokens_per_picture(config),
        by_part=dict(parts),
    )


def count_parts(network: nn.Module) -> Counter[str]:
    """Parameters of a Denoiser by part (`parts.PARTS`)."""
    parts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        parts[part_of(name)] += parameter.numel()
    return parts
