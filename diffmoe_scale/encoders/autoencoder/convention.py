"""How each of diffusers' autoencoders is called, and how its pipelines shift and scale what it gives.

z are the numbers that a network gives or takes; latents are (z - shift) * scale, near mean 0 and deviation 1.
z is the mean of an encoder's distribution, not a draw: its deviation is tiny beside the latents', and a run
that is resumed sees the latents that it would have seen.

B images, C H W channels, height, width of an image (3 channels in [-1, 1]) or of z.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any  # JSON; diffusers' models carry no useful types

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.config.section import show
from diffmoe_scale.encoders.autoencoder.folder import halvings, positive, refuse_other_pictures

logger = logging.getLogger(__name__)
CLASSES = "AutoencoderKL, AutoencoderTiny, AutoencoderKLFlux2, AutoencoderDC or AutoencoderKLQwenImage"
LARGEST_PATCH = 16


@dataclass(frozen=True)
class Convention:
    """Of one class of diffusers. `channels` and `factor`, by which z is smaller than the image on each side,
    are known from config.json alone."""

    channels: int
    factor: int
    encode: Callable[[Any, Tensor], Tensor]
    """z of a network and images."""
    decode: Callable[[Any, Tensor], Tensor]
    """Images of a network and z."""
    statistics: Callable[[Any], tuple[Tensor, Tensor]]
    """Shift and scale of a loaded network in fp32: one number for all channels, or one for each."""


def convention_of(config: Mapping[str, Any], *, normalization: str) -> Convention:
    """The convention of the class in a config.json; what that leaves out has the default of diffusers' class.

    Raises: ValueError for another class, values without sense, or a `normalization` that the class has not.
    """
    name = config.get("_class_name")
    if name != "AutoencoderKL" and normalization != "pipeline":
        raise ValueError(
            f"autoencoder.normalization is {normalization!r}, which only AutoencoderKL has; it is of {name}"
        )
    match name:
        case "AutoencoderKL":
            refuse_other_pictures(config, "in_channels", "out_channels")
            channels, factor = (
                positive(config, "latent_channels", 4),
                halvings(config, "block_out_channels", 1),
            )
            is_unit = normalization == "statistics"
            return Convention(channels, factor, _mode, _decode, _unit_scale if is_unit else _kl_scale)
        case "AutoencoderTiny":
            refuse_other_pictures(config, "in_channels", "out_channels")
            channels = positive(config, "latent_channels", 4)
            factor = halvings(config, "encoder_block_out_channels", 4)
            return Convention(channels, factor, _encode_tiny, _decode, _kl_scale)
        case "AutoencoderKLFlux2":
            refuse_other_pictures(config, "in_channels", "out_channels")
            channels, factor = (
                positive(config, "latent_channels", 32),
                halvings(config, "block_out_channels", 4),
            )
            patch = _flux2_patch(config)
            return Convention(channels * patch**2, factor * patch, _encode_flux2, _decode_flux2, _flux2_scale)
        case "AutoencoderDC":
            refuse_other_pictures(config, "in_channels")
            channels = positive(config, "latent_channels", 32)
            factor = halvings(config, "encoder_block_out_channels", 6)
            return Convention(channels, factor, _encode_dc, _decode, _dc_scale)
        case "AutoencoderKLQwenImage":
            refuse_other_pictures(config, "input_channels")
            channels, factor = positive(config, "z_dim", 16), halvings(config, "dim_mult", 4)
            return Convention(channels, factor, _encode_frame, _decode_frame, _unit_scale)
    raise ValueError(f"its config.json is of {show(name)}; expected {CLASSES}")


def _mode(model: Any, images_BCHW: Tensor) -> Tensor:
    z_BCHW: Tensor = model.encode(images_BCHW).latent_dist.mode()
    return z_BCHW


def _decode(model: Any, z_BCHW: Tensor) -> Tensor:
    images_BCHW: Tensor = model.decode(z_BCHW).sample
    return images_BCHW


def _kl_scale(model: Any) -> tuple[Tensor, Tensor]:
    """SD, SD3, Flux: (z - shift_factor) * scaling_factor (pipeline_flux_img2img). With statistics of each
    channel: (z - latents_mean) * scaling_factor / latents_std (pipeline_stable_diffusion_xl_img2img)."""
    config = model.config
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    if (means is None) != (deviations is None):
        raise ValueError("its config.json has only one of latents_mean and latents_std")
    if means is None:
        return torch.tensor([config.shift_factor or 0.0]), config.scaling_factor / torch.ones(1)
    if config.scaling_factor != 1.0:
        logger.warning(
            "autoencoder.path: latents are (z - latents_mean) * scaling_factor / latents_std with "
            "scaling_factor %s, as in diffusers' pipelines of SDXL; REPA-E's folders are meant without "
            "scaling_factor: autoencoder.normalization=statistics",
            config.scaling_factor,
        )
    return torch.tensor(means), config.scaling_factor / torch.tensor(deviations)


def _unit_scale(model: Any) -> tuple[Tensor, Tensor]:
    """(z - latents_mean) / latents_std: AutoencoderKLQwenImage (pipeline_qwenimage_img2img), and
    AutoencoderKL as REPA-E trains on its folders (End2End-Diffusion/fuse-dit, diffusion/trainers.py)."""
    means, deviations = model.config.get("latents_mean"), model.config.get("latents_std")
    if means is None or deviations is None:
        raise ValueError(
            "autoencoder.normalization is 'statistics', and it has no latents_mean or latents_std"
        )
    return torch.tensor(means), 1.0 / torch.tensor(deviations)


def _encode_tiny(model: Any, images_BCHW: Tensor) -> Tensor:
    z_BCHW: Tensor = model.encode(images_BCHW).latents
    return z_BCHW


def _flux2_patch(config: Mapping[str, Any]) -> int:
    patch_size = config.get("patch_size", [2, 2])
    is_square = isinstance(patch_size, list) and len(patch_size) == 2 and patch_size[0] == patch_size[1]
    if not is_square or type(patch_size[0]) is not int or not 1 <= patch_size[0] <= LARGEST_PATCH:
        raise ValueError(f"its config.json has {show(patch_size)} for patch_size")
    patch: int = patch_size[0]
    return patch


def _encode_flux2(model: Any, images_BCHW: Tensor) -> Tensor:
    """Squares of z become channels, in the order channel, row, column (pipeline_flux2, _patchify_latents)."""
    return F.pixel_unshuffle(_mode(model, images_BCHW), model.config.patch_size[0])


def _decode_flux2(model: Any, z_BCHW: Tensor) -> Tensor:
    return _decode(model, F.pixel_shuffle(z_BCHW, model.config.patch_size[0]))


def _flux2_scale(model: Any) -> tuple[Tensor, Tensor]:
    """The statistics are buffers of a batch norm, of the channels of the squares (pipeline_flux2,
    _encode_vae_image)."""
    return model.bn.running_mean, 1.0 / (model.bn.running_var + model.config.batch_norm_eps).sqrt()


def _encode_dc(model: Any, images_BCHW: Tensor) -> Tensor:
    """There is no distribution."""
    z_BCHW: Tensor = model.encode(images_BCHW).latent
    return z_BCHW


def _dc_scale(model: Any) -> tuple[Tensor, Tensor]:
    """z * scaling_factor (pipeline_sana)."""
    return torch.zeros(1), model.config.scaling_factor * torch.ones(1)


def _encode_frame(model: Any, images_BCHW: Tensor) -> Tensor:
    """A network of videos, on one frame (pipeline_qwenimage_img2img)."""
    return _mode(model, images_BCHW.unsqueeze(2)).squeeze(2)


def _decode_frame(model: Any, z_BCHW: Tensor) -> Tensor:
    return _decode(model, z_BCHW.unsqueeze(2)).squeeze(2)
