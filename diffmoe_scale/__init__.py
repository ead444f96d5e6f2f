"""Training stack for text-to-image diffusion transformers with dynamic mixture-of-experts layers
(DiffMoE, arXiv 2503.14487).

Tensor legend: a name such as `x_BND` ends in a letter for each dimension.
B samples of this rank, N tokens a sample, S = B * N tokens of this rank, D width, E experts in all,
e experts of this rank, F expert width, K tokens that an expert takes, R rows that an expert rank computes,
L text tokens, T text width, C H W channels, height and width of a picture or its latents.

For notebooks: `load_pipeline` and `generate` (docs/python-api.md).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmoe_scale.sampling.generate import generate
    from diffmoe_scale.sampling.loading import load_pipeline

__version__ = "0.1.0"

__all__ = ["__version__", "generate", "load_pipeline"]


def __getattr__(name: str) -> object:
    """`generate` and `load_pipeline` load torch, so they are imported when they are first used."""
    if name in ("generate", "load_pipeline"):
        from diffmoe_scale.telemetry.log import silence_packages

        silence_packages()
    match name:
        case "generate":
            from diffmoe_scale.sampling.generate import generate

            return generate
        case "load_pipeline":
            from diffmoe_scale.sampling.loading import load_pipeline

            return load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
