"""Training stack for text-to-image diffusion transformers with dynamic mixture-of-experts layers (DiffMoE)."""

__version__ = "0.1.0"
