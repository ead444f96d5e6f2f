"""Autoencoders of diffusers, from local folders.

B images, C H W channels, height, width of an image (3 channels in [-1, 1]) or of latents.
"""

import json
from pathlib import Path
from typing import Any  # diffusers' models carry no useful types

import torch
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.encoders.fingerprint import WeightFiles


class KL:
    """diffusers' AutoencoderKL in fp32; latents are (z - shift) * scale, with what its config says about
    both.

    z is the mean of the encoder's distribution, not a draw: its standard deviation is tiny beside the
    latents', and a run that is resumed sees the latents that it would have seen.
    """

    # diffusers' models carry no useful types.
    def __init__(self, model: Any, files: WeightFiles) -> None:
        self.model = model.requires_grad_(False).eval()
        self.files = files
        self.channels: int = model.config.latent_channels
        self.factor: int = 2 ** (len(model.config.block_out_channels) - 1)
        mean, std = model.config.latents_mean, model.config.latents_std
        # Numbers for all channels (SD3, Flux), or one for each (diffusers' pipelines: latents * std /
        # scaling_factor + mean).
        shift_C = torch.tensor(
            mean if mean is not None else [model.config.shift_factor or 0.0], device=model.device
        )
        std_C = torch.tensor(std if std is not None else [1.0], device=model.device)
        self._shift_C11 = shift_C[:, None, None]
        self._scale_C11 = (model.config.scaling_factor / std_C)[:, None, None]

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        z_BCHW: Tensor = self.model.encode(images_BCHW).latent_dist.mode()
        return (z_BCHW - self._shift_C11) * self._scale_C11

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        images_BCHW: Tensor = self.model.decode(latents_BCHW / self._scale_C11 + self._shift_C11).sample
        return images_BCHW

    def fingerprint(self) -> str:
        return self.files.fingerprint(self.model, self._shift_C11.tolist(), self._scale_C11.tolist())


def load_kl(folder: Path, *, device: torch.device) -> KL:
    """Only from the folder: diffusers takes anything else for the name of a repository on the network."""
    expected = "a folder with the config.json of an AutoencoderKL and diffusion_pytorch_model.safetensors"
    config_file = folder / "config.json"
    require(config_file.is_file(), "autoencoder.path", str(folder), f"{expected}; it has no config.json")
    try:
        name = json.loads(config_file.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"autoencoder.path is {str(folder)!r}; expected {expected}; its config.json does not parse: "
            f"{error}"
        ) from error
    require(
        name == "AutoencoderKL", "autoencoder.path", str(folder), f"{expected}; its config.json is of {name}"
    )
    from diffusers import AutoencoderKL  # seconds, and needed by few

    files = WeightFiles([config_file, *folder.glob("*.safetensors")], record=folder / "fingerprint.json")
    try:
        model = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # torch, safetensors and diffusers each raise their own
        raise ValueError(
            f"autoencoder.path is {str(folder)!r}; expected {expected}; loading says: {error}"
        ) from error
    return KL(model.to(device), files)
