"""Training stack for text-to-image diffusion transformers with dynamic mixture-of-experts layers
(DiffMoE, arXiv 2503.14487).

Tensor legend: a name such as `x_BND` ends in a letter for each dimension.
B samples of this rank, N tokens a sample, S = B * N tokens of this rank, D width, E experts in all,
e experts of this rank, F expert width, K tokens that an expert takes, R rows that an expert rank computes,
L text tokens, T text width, C H W channels, height and width of a picture or its latents.
"""

__version__ = "0.1.0"
