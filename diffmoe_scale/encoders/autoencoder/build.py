"""Between images and what the diffusion transformer sees of them: the autoencoder that a config names.

B images, C H W channels, height, width of an image (3 channels in [-1, 1]) or of latents.
"""

from typing import Protocol

import torch
from torch import Tensor

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.check import require
from diffmoe_scale.config.schema import Config
from diffmoe_scale.encoders.autoencoder.diffusers import folder_convention, load_autoencoder
from diffmoe_scale.encoders.autoencoder.pixels import Pixels
from diffmoe_scale.encoders.autoencoder.tiles import OVERLAP


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

    Raises: ValueError for a folder that does not hold an autoencoder.
    """
    if config.kind == "pixels":
        return Pixels.channels, Pixels.factor
    convention = folder_convention(config)
    return convention.channels, convention.factor


def build_autoencoder(config: AutoencoderConfig, *, device: torch.device) -> Autoencoder:
    """The autoencoder of a config. Raises: ValueError for a folder that does not hold one."""
    return Pixels() if config.kind == "pixels" else load_autoencoder(config, device=device)


def check_picture_sizes(config: Config, *, factor: int) -> None:
    """Raises: ValueError unless the sizes of pictures fit latents that are smaller by `factor` and patches of
    `model.patch_size`, and tiles fit `factor`."""
    patch, size, step = config.model.patch_size, config.model.image_size, config.buckets.step
    multiple = factor * patch
    expected = f"a multiple of {multiple}: the autoencoder's factor {factor} times model.patch_size {patch}"
    require(size % multiple == 0, "model.image_size", size, expected)
    position_size = config.model.position_size
    require(position_size % multiple == 0, "model.position_size", position_size, f"0, or {expected}")
    require(not config.buckets.enabled or step % multiple == 0, "buckets.step", step, expected)
    tile, least = config.autoencoder.tile, factor * OVERLAP
    expected = f"0 (off) or a multiple of {least}: {OVERLAP} times the autoencoder's factor {factor}"
    require(tile % least == 0, "autoencoder.tile", tile, expected)
