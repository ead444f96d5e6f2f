"""How large the network of a config is: counted on `meta`, without its memory or its weights."""

from collections import Counter
from dataclasses import dataclass, replace

from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.encoders.autoencoder.build import latent_format
from diffmoe_scale.encoders.text.build import feature_widths
from diffmoe_scale.encoders.text.trained import count_trained_parameters
from diffmoe_scale.model.networks import build_transformer, check_sizes
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import single_rank_groups

PARTS = {
    "experts": ".experts.linear_",
    "routers and predictors": ".router.",
    "dense feed-forward": ".feed_forward.",
    "attention": ".attention.",
    "cross-attention": ".cross_attention.",
    "modulation": "modulation.",
}
"""Names of parts, and what the names of their parameters hold; the first that fits counts."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a network over all ranks, the text encoder that is trained along among them."""

    total: int
    activated: int
    """What an average token passes through: all but experts, and of those `moe.capacity` (or `moe.top_k`) of
    each layer (DiffMoE eq. 40)."""
    experts: int
    """Experts of each MoE layer; 0 for a dense network."""
    tokens_per_picture: int
    by_part: dict[str, int]
    """Parameters by PARTS, "text encoder" and "embeddings and output"."""


def count_parameters(config: Config) -> ModelSize:
    """The size of a config's network, in a second whatever the size.

    A vocabulary counts whole (`text.vocabulary`): the tokenizer of a run may find fewer pieces.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other, or files of frozen
    networks are missing.
    """
    channels, factor = latent_format(config.autoencoder)
    check_sizes(config, channels=channels, factor=factor)
    is_text = config.model.conditioning == "text"
    # Every backend has the parameters of the plain loop, which needs no GPU.
    plain = replace(config, moe=replace(config.moe, backend="loop", precision="model"))
    transformer = build_transformer(
        plain,
        latent_size=config.model.image_size // factor,
        output_channels=build_objective(config.diffusion).output_channels(channels),
        text_widths=feature_widths(config.text) if is_text else (0, 0),
        groups=single_rank_groups(),
    )
    parts = count_parts(transformer)
    if is_text and config.text.kind == "sentencepiece":
        parts["text encoder"] = count_trained_parameters(config.text)
    total, num_experts = parts.total(), config.moe.num_experts
    used = config.moe.top_k if config.moe.router == "token_choice" else config.moe.capacity
    unused_share = 1 - used / num_experts if num_experts else 0.0
    return ModelSize(
        total=total,
        activated=total - round(unused_share * parts["experts"]),
        experts=num_experts,
        tokens_per_picture=(config.model.image_size // factor // config.model.patch_size) ** 2,
        by_part=dict(parts),
    )


def count_parts(transformer: DiffusionTransformer) -> Counter[str]:
    """Parameters by PARTS; the rest is "embeddings and output"."""
    parts: Counter[str] = Counter()
    for name, parameter in transformer.named_parameters():
        found = (part for part, pattern in PARTS.items() if pattern in f".{name}")
        parts[next(found, "embeddings and output")] += parameter.numel()
    return parts
