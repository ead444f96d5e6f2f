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
        self._shift_C11 = self._checked("shift", shift_C)[:, None, None]
        self._scale_C11 = self._checked("scale", model.config.scaling_factor / std_C)[:, None, None]

    def _checked(self, name: str, values_C: Tensor) -> Tensor:
        """Raises: ValueError unless there is one finite number, or one for each channel."""
        is_good = len(values_C) in (1, self.channels) and bool(values_C.isfinite().all())
        if not is_good or (name == "scale" and not values_C.all()):
            raise ValueError(f"config.json gives {self.channels} channels the {name} {values_C.tolist()}")
        return values_C

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


MOST_BLOCKS = 16
EXPECTED = "a folder with the config.json of an AutoencoderKL and diffusion_pytorch_model.safetensors"


def _read_config(folder: Path) -> dict[str, Any]:
    """The config.json of an AutoencoderKL. Raises: ValueError if there is none."""
    file = folder / "config.json"
    require(file.is_file(), "autoencoder.path", str(folder), f"{EXPECTED}; it has no config.json")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        name = config.get("_class_name")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _misfit(folder, f"its config.json does not parse: {error}") from error
    if name != "AutoencoderKL":
        raise _misfit(folder, f"its config.json is of {name}")
    return config


def _misfit(folder: Path, reason: str) -> ValueError:
    return ValueError(f"autoencoder.path is {str(folder)!r}; expected {EXPECTED}; {reason}")


def kl_latent_format(folder: Path) -> tuple[int, int]:
    """Channels of latents and the factor by which they are smaller than images, from config.json alone.

    Raises: ValueError for a folder that does not hold an AutoencoderKL.
    """
    config = _read_config(folder)
    # What is left out has the default of diffusers' class.
    channels, blocks = config.get("latent_channels", 4), config.get("block_out_channels", [64])
    if not isinstance(channels, int) or channels < 1:
        raise _misfit(folder, f"its config.json has {channels!r} latent_channels")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MOST_BLOCKS:
        raise _misfit(folder, f"its config.json has {blocks!r} for block_out_channels")
    return channels, 2 ** (len(blocks) - 1)


def load_kl(folder: Path, *, device: torch.device) -> KL:
    """Only from the folder: diffusers takes anything else for the name of a repository on the network.

    Raises: ValueError for a folder that does not hold an AutoencoderKL and all its weights.
    """
    kl_latent_format(folder)
    from diffusers import AutoencoderKL  # seconds, and needed by few

    files = WeightFiles(
        [folder / "config.json", *folder.glob("*.safetensors")], record=folder / "fingerprint.json"
    )
    try:
        model, report = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        autoencoder = KL(model.to(device), files)
    except Exception as error:  # torch, safetensors and diffusers each raise their own
        raise _misfit(folder, f"loading says: {error}") from error
    if missing := report["missing_keys"]:
        # diffusers leaves random numbers in their place.
        raise _misfit(folder, f"{len(missing)} weights are missing, the first is {missing[0]}")
    return autoencoder
