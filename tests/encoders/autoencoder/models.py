"""Tiny random autoencoders of each of diffusers' classes that are supported."""

from pathlib import Path
from typing import Any  # diffusers' models carry no useful types

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
)
from torch import Tensor

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.encoders.autoencoder.build import Autoencoder, build_autoencoder
from diffmoe_scale.encoders.autoencoder.diffusers import DiffusersAutoencoder, load_autoencoder

CPU = torch.device("cpu")
THREE_BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}
FORMATS = {
    "sd": (4, 4),
    "sdxl": (4, 4),
    "flux": (16, 4),
    "repa-e": (8, 4),
    "flux2": (16, 8),
    "dc": (8, 4),
    "qwen-image": (4, 4),
    "tiny": (4, 4),
}
"""Channels of latents, and the factor by which they are smaller than pictures."""


def tiny_model(**settings: Any) -> Any:
    """An AutoencoderKL with 16 channels at a quarter of the pixels."""
    torch.manual_seed(0)
    model: Any = AutoencoderKL(**{"latent_channels": 16} | THREE_BLOCKS | settings)
    return model.eval()


def model_of_kind(kind: str) -> Any:
    """The tiny network of a kind in FORMATS; the same at each call."""
    channels = FORMATS[kind][0]
    means, deviations = [0.1 * number - 0.2 for number in range(channels)], [0.5 + n for n in range(channels)]
    torch.manual_seed(1)
    model: Any
    match kind:
        case "sd":
            model = tiny_model(latent_channels=4, scaling_factor=0.18215)
        case "sdxl":
            model = tiny_model(
                latent_channels=4, scaling_factor=0.5, latents_mean=means, latents_std=deviations
            )
        case "flux":
            model = tiny_model(
                scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
            )
        case "repa-e":
            model = tiny_model(latent_channels=8, latents_mean=means, latents_std=deviations)
        case "flux2":
            model = AutoencoderKLFlux2(latent_channels=4, **THREE_BLOCKS)
            model.bn.running_mean.uniform_(-1, 1)
            model.bn.running_var.uniform_(0.5, 4)
        case "dc":
            model = AutoencoderDC(
                latent_channels=8,
                attention_head_dim=4,
                encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8, 16),
                decoder_block_out_channels=(8, 8, 16),
                encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), (5,)),
                decoder_qkv_multiscales=((), (), (5,)),
                scaling_factor=0.41407,
            )
        case "qwen-image":
            model = AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=means,
                latents_std=deviations,
            )
        case "tiny":
            model = AutoencoderTiny(
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                num_encoder_blocks=(1, 1, 1),
                num_decoder_blocks=(1, 1, 1),
            )
    return model.eval()


def config_of(kind: str, folder: Path, **settings: Any) -> AutoencoderConfig:
    """The settings for the folder of a kind."""
    if kind == "repa-e":
        settings = {"normalization": "statistics"} | settings
    return AutoencoderConfig(kind="diffusers", path=str(folder), **settings)


def load_kind(kind: str, folder: Path, **settings: Any) -> Autoencoder:
    """The autoencoder of a kind, saved by diffusers into `folder` and loaded by the real code."""
    model_of_kind(kind).save_pretrained(folder)
    return build_autoencoder(config_of(kind, folder, **settings), device=CPU)


def images(height: int = 16, width: int = 24, *, count: int = 2) -> Tensor:
    """Noise in [-1, 1]."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(folder: Path, **settings: Any) -> DiffusersAutoencoder:
    """The autoencoder of a folder."""
    return load_autoencoder(AutoencoderConfig(kind="diffusers", path=str(folder), **settings), device=CPU)
