"""The parts of a network, each of which is counted by itself."""

PARTS = {
    "text encoder": ".text_encoder.",
    "experts": ".experts.linear_",
    "shared experts": ".shared_experts.",
    "capacity predictors": ".predictor.",
    "target heads": ".router.target.",
    "routers": ".router.",
    "dense feed-forward": ".feed_forward.",
    "text feed-forward": ".text_feed_forward.",
    "cross-attention": ".cross_attention.",
    "attention": "attention.",
    "modulation": ".modulation.",
    "text modulation": ".text_modulation.",
    "shared modulation": ".shared_modulation.",
}
"""Names of parts, and what the names of their modules hold; the first that fits counts."""
REST = "embeddings and output"

GRADIENT_PARTS = ("router", "predictor", "experts", "dense", "text")
"""Parts by which a run tells the gradient norm."""


def part_of(name: str) -> str:
    """The part that a module or parameter of `Denoiser` belongs to, by its dotted name."""
    return next((part for part, pattern in PARTS.items() if pattern in f".{name}."), REST)


def gradient_part_of(name: str) -> str:
    """The one of GRADIENT_PARTS that a parameter of `Denoiser` belongs to: `text` is the encoder that is
    trained along and, of joint blocks, the caption's own layers; `dense` all that is none of the others."""
    part = part_of(name)
    names = {"routers": "router", "capacity predictors": "predictor", "experts": "experts"}
    return "text" if part.startswith("text ") else names.get(part, "dense")
