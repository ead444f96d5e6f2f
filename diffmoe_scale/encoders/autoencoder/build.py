"""Between images and what the diffusion transformer sees of them: the autoencoder that a config names.

B images, C H W channels, height, width of an image (3 channels in [-1, 1]) or of latents.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffmoe_scale.config.encoders import AutoencoderConfig
from diffmoe_scale.encoders.autoencoder.diffusers import kl_latent_format, load_kl
from diffmoe_scale.encoders.autoencoder.pixels import Pixels


class Autoencoder(Protocol):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, channels, H / factor, W / factor] and back, without
    gradients. `encode` draws nothing."""

    channels: int
    factor: int

    def encode(self, images_BCHW: Tensor) -> Tensor: ...

    def decode(self, latents_BCHW: Tensor) -> Tensor: ...

    def fingerprint(self) -> str:
        """Equal for autoencoders that give equal latents."""
        ...


def latent_format(config: AutoencoderConfig) -> tuple[int, int]:
    """Channels of latents and the factor by which they are smaller than images, without reading weights.

    Raises: ValueError for a folder that does not hold an AutoencoderKL.
    """
    match config.kind:
        case "pixels":
            return Pixels.channels, Pixels.factor
        case "kl":
            return kl_latent_format(Path(config.path))


def build_autoencoder(config: AutoencoderConfig, *, device: torch.device) -> Autoencoder:
    """The autoencoder of a config. Raises: ValueError for a folder that does not hold an AutoencoderKL."""
    match config.kind:
        case "pixels":
            return Pixels()
        case "kl":
            return load_kl(Path(config.path), device=device)
