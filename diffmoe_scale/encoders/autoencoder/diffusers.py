"""Autoencoders of diffusers, from local folders.

B images, C H W channels, height, width of an image (3 channels in [-1, 1]) or of latents.
"""

import logging
from pathlib import Path
from typing import Any  # diffusers' models carry no useful types

import torch
from torch import Tensor, nn

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.encoders.autoencoder.convention import Convention, convention_of
from diffmoe_scale.encoders.autoencoder.folder import misfit, read_folder
from diffmoe_scale.encoders.autoencoder.tiles import decode_in_tiles
from diffmoe_scale.encoders.fingerprint import WeightFiles
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


class DiffusersAutoencoder:
    """A network of diffusers; latents are (z - shift) * scale, computed in fp32 whatever the format of the
    network."""

    # diffusers' models carry no useful types.
    def __init__(
        self,
        model: Any,
        convention: Convention,
        files: WeightFiles,
        *,
        precision: str,
        device: torch.device,
        tile: int,
    ) -> None:
        """`precision` is a key of NUMBER_FORMATS, `tile` are pixels, a multiple of 4 * factor, or 0.

        Raises: ValueError if shift or scale have no sense.
        """
        self.channels, self.factor, self.tile = convention.channels, convention.factor, tile
        # Before the network is cast: it may hold them.
        shift_C, scale_C = convention.statistics(model)
        self._shift_C11 = self._checked("shift", shift_C).to(device)[:, None, None]
        self._scale_C11 = self._checked("scale", scale_C).to(device)[:, None, None]
        self.precision, self.dtype = precision, NUMBER_FORMATS[precision]
        # Not by the model's own `to`, which warns of each cast (diffusers 0.42.1).
        self.model = nn.Module.to(model.requires_grad_(False).eval(), device, self.dtype)
        self.convention, self.files = convention, files

    def _checked(self, name: str, values_C: Tensor) -> Tensor:
        """Raises: ValueError unless there is one finite number, or one for each channel."""
        is_good = values_C.shape in ((1,), (self.channels,)) and bool(values_C.isfinite().all())
        if not is_good or (name == "scale" and not values_C.all()):
            raise ValueError(f"it gives {self.channels} channels the {name} {values_C.tolist()}")
        return values_C.float()

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        z_BCHW = self.convention.encode(self.model, images_BCHW.to(self.dtype)).float()
        return (z_BCHW - self._shift_C11) * self._scale_C11

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        z_BCHW = latents_BCHW / self._scale_C11 + self._shift_C11
        if not self.tile:
            return self._decode(z_BCHW)
        return decode_in_tiles(self._decode, z_BCHW, tile=self.tile // self.factor, factor=self.factor)

    def _decode(self, z_BCHW: Tensor) -> Tensor:
        return self.convention.decode(self.model, z_BCHW.to(self.dtype)).float()

    def fingerprint(self) -> str:
        # The first version had fp32 alone: its fingerprints stay valid.
        settings: list[object] = [self._shift_C11.tolist(), self._scale_C11.tolist()]
        if self.precision != "fp32":
            settings.append(self.precision)
        return self.files.fingerprint(self.model, *settings)

    def __str__(self) -> str:
        shift, scale = (_range(values) for values in (self._shift_C11, self._scale_C11))
        return (
            f"{type(self.model).__name__}, {self.channels} channels at 1/{self.factor} of the pixels, "
            f"{self.precision}; "
            f"latents are (z - shift) * scale, shift {shift}, scale {scale}"
        )


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


def folder_convention(config: AutoencoderConfig) -> Convention:
    """How the folder of a config is used, from its config.json alone. Raises: ValueError."""
    folder = Path(config.path)
    settings = read_folder(folder)
    try:
        return convention_of(settings, normalization=config.normalization)
    except ValueError as error:
        raise misfit(folder, str(error)) from error


def load_autoencoder(config: AutoencoderConfig, *, device: torch.device) -> DiffusersAutoencoder:
    """Only from the folder: diffusers takes anything else for the name of a repository on the network.

    Raises: ValueError for a folder that does not hold an autoencoder and all its weights.
    """
    folder, convention = Path(config.path), folder_convention(config)
    sources = [folder / "config.json", *folder.glob("*.safetensors")]
    try:
        files = WeightFiles(sources, record=folder / "fingerprint.json")
        model, report = class_of(read_folder(folder)["_class_name"]).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        _refuse_other_weights(report)
        _refuse_broken_weights(model)
        autoencoder = DiffusersAutoencoder(
            model, convention, files, precision=config.precision, device=device, tile=config.tile
        )
    except Exception as error:  # torch, safetensors and diffusers each raise their own
        raise misfit(folder, f"loading says: {error}") from error
    logger.info("autoencoder: %s", autoencoder)
    return autoencoder


def class_of(name: str) -> Any:
    """One of diffusers' classes; each import takes seconds."""
    import diffusers

    match name:
        case "AutoencoderKL":
            return diffusers.AutoencoderKL
        case "AutoencoderTiny":
            return diffusers.AutoencoderTiny
        case "AutoencoderKLFlux2":
            return diffusers.AutoencoderKLFlux2
        case "AutoencoderDC":
            return diffusers.AutoencoderDC
        case "AutoencoderKLQwenImage":
            return diffusers.AutoencoderKLQwenImage


def _refuse_other_weights(report: dict[str, list[str]]) -> None:
    """Raises: ValueError for weights of another network. diffusers warns only: it leaves random numbers in
    the place of missing weights, and passes over those that it has no place for."""
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"it lacks {counted(len(missing), 'weight')}, the first is {missing[0]}")
    if unexpected := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"it has {counted(len(unexpected), 'weight')} without a place in the network of config.json, "
            f"the first is {unexpected[0]}"
        )


def _refuse_broken_weights(model: nn.Module) -> None:
    """Raises: ValueError for weights that are not finite: every latent would be NaN."""
    for name, weight in model.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weight {name} holds numbers that are not finite")
