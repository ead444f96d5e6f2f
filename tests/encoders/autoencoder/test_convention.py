"""Shift and scale of each class: as written down from its pipeline, and as diffusers' pipelines do it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any  # diffusers' models carry no useful types

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img import QwenImageImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from torch import Tensor

from diffmoe_scale.encoders.autoencoder.convention import convention_of
from tests.encoders.autoencoder.models import FORMATS, images, load_kind, model_of_kind


def mean_z(kind: str, model: Any) -> Tensor:
    """What the network of a kind gives, before shift and scale."""
    with torch.no_grad():
        if kind == "dc":
            return model.encode(images()).latent  # type: ignore[no-any-return]  # untyped
        if kind == "tiny":
            return model.encode(images()).latents  # type: ignore[no-any-return]  # untyped
        if kind == "qwen-image":
            frames = images()[:, :, None]
            return model.encode(frames).latent_dist.mean[:, :, 0]  # type: ignore[no-any-return]  # untyped
        return model.encode(images()).latent_dist.mean  # type: ignore[no-any-return]  # untyped


def expected_latents(kind: str, model: Any) -> Tensor:
    """One channel after another."""
    z_BCHW, config = mean_z(kind, model), model.config
    channels = []
    for c in range(FORMATS[kind][0]):
        match kind:
            case "sd" | "dc":
                channels.append(z_BCHW[:, c] * config.scaling_factor)
            case "flux":
                channels.append((z_BCHW[:, c] - 0.1159) * 0.3611)
            case "tiny":
                channels.append(z_BCHW[:, c])
            case "sdxl":
                channels.append((z_BCHW[:, c] - config.latents_mean[c]) * 0.5 / config.latents_std[c])
            case "repa-e" | "qwen-image":
                channels.append((z_BCHW[:, c] - config.latents_mean[c]) / config.latents_std[c])
            case "flux2":
                # Channel 4 k + 2 row + column is that pixel of each square of channel k.
                k, row, column = c // 4, c % 4 // 2, c % 2
                part = z_BCHW[:, k, row::2, column::2]
                channels.append((part - model.bn.running_mean[c]) / (model.bn.running_var[c] + 1e-4) ** 0.5)
    return torch.stack(channels, dim=1)


def expected_images(kind: str, model: Any) -> Tensor:
    with torch.no_grad():
        z_BCHW = mean_z(kind, model)
        if kind == "qwen-image":
            return model.decode(z_BCHW[:, :, None]).sample[:, :, 0]  # type: ignore[no-any-return]  # untyped
        return model.decode(z_BCHW).sample  # type: ignore[no-any-return]  # untyped


@pytest.mark.parametrize("kind", FORMATS)
def test_latents_are_shifted_and_scaled_and_decoding_undoes_it(kind: str, tmp_path: Path) -> None:
    model, autoencoder = model_of_kind(kind), load_kind(kind, tmp_path)
    latents_BCHW = autoencoder.encode(images())
    torch.testing.assert_close(latents_BCHW, expected_latents(kind, model))
    # (z - shift) * scale and back rounds each number twice.
    torch.testing.assert_close(
        autoencoder.decode(latents_BCHW), expected_images(kind, model), rtol=1e-4, atol=1e-5
    )


class MeanModel:
    """A network whose encoder gives the mean of its distribution, from which the pipelines would draw."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def encode(self, images: Tensor) -> SimpleNamespace:
        with torch.no_grad():
            return SimpleNamespace(latents=self.model.encode(images).latent_dist.mode())

    def to(self, dtype: torch.dtype) -> None:
        assert dtype == torch.float32


def test_latents_are_those_of_diffusers_pipelines(tmp_path: Path) -> None:
    ours = {
        kind: load_kind(kind, tmp_path / kind).encode(images())
        for kind in ("sd", "sdxl", "flux", "flux2", "qwen-image")
    }
    models = {kind: model_of_kind(kind) for kind in ours}
    wrapped = {kind: SimpleNamespace(vae=MeanModel(model)) for kind, model in models.items()}
    flux2 = SimpleNamespace(vae=models["flux2"], _patchify_latents=Flux2Pipeline._patchify_latents)
    frames = images()[:, :, None]
    of_xl: Any = StableDiffusionXLImg2ImgPipeline
    of_flux: Any = FluxImg2ImgPipeline
    of_flux2: Any = Flux2Pipeline
    of_qwen: Any = QwenImageImg2ImgPipeline
    with torch.no_grad():
        theirs = {
            kind: of_xl.prepare_latents(
                wrapped[kind], images(), None, 2, 1, torch.float32, "cpu", add_noise=False
            )
            for kind in ("sd", "sdxl")
        }
        theirs["flux"] = of_flux._encode_vae_image(wrapped["flux"], images(), None)
        theirs["flux2"] = of_flux2._encode_vae_image(flux2, images(), None)
        theirs["qwen-image"] = of_qwen._encode_vae_image(wrapped["qwen-image"], frames, None)[:, :, 0]
    for kind, latents_BCHW in ours.items():
        torch.testing.assert_close(latents_BCHW, theirs[kind], msg=f"other latents of {kind}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AutoencoderKL", (4, 1)),
        ("AutoencoderTiny", (4, 8)),
        ("AutoencoderKLFlux2", (128, 16)),
        ("AutoencoderDC", (32, 32)),
        ("AutoencoderKLQwenImage", (16, 8)),
    ],
)
def test_what_a_config_leaves_out_is_the_default_of_the_class(name: str, expected: tuple[int, int]) -> None:
    found = convention_of({"_class_name": name}, normalization="pipeline")
    assert (found.channels, found.factor) == expected


@pytest.mark.parametrize(
    ("config", "normalization", "message"),
    [
        ({}, "pipeline", "is of None; expected AutoencoderKL, "),
        ({"_class_name": "AutoencoderOobleck"}, "pipeline", "is of 'AutoencoderOobleck'"),
        ({"_class_name": ["AutoencoderKL"]}, "pipeline", r"is of \['AutoencoderKL'\]"),
        ({"_class_name": "AutoencoderDC"}, "statistics", "only AutoencoderKL has; it is of AutoencoderDC"),
        ({"_class_name": "AutoencoderKL", "latent_channels": "4"}, "pipeline", "'4' for latent_channels"),
        ({"_class_name": "AutoencoderKL", "latent_channels": True}, "pipeline", "True for latent_channels"),
        ({"_class_name": "AutoencoderKL", "in_channels": 4}, "pipeline", "4 for in_channels; .* 3 channels"),
        ({"_class_name": "AutoencoderKL", "block_out_channels": []}, "pipeline", r"\[\] for block_out"),
        ({"_class_name": "AutoencoderTiny", "encoder_block_out_channels": 3}, "pipeline", "3 for encoder_b"),
        ({"_class_name": "AutoencoderDC", "encoder_block_out_channels": [8] * 17}, "pipeline", "for encoder"),
        ({"_class_name": "AutoencoderKLQwenImage", "z_dim": 0}, "pipeline", "0 for z_dim"),
        ({"_class_name": "AutoencoderKLQwenImage", "input_channels": 4}, "pipeline", "4 for input_channels"),
        ({"_class_name": "AutoencoderKLFlux2", "patch_size": [2, 1]}, "pipeline", r"\[2, 1\] for patch_size"),
        ({"_class_name": "AutoencoderKLFlux2", "patch_size": 2}, "pipeline", "2 for patch_size"),
        ({"_class_name": "AutoencoderKLFlux2", "patch_size": [0, 0]}, "pipeline", r"\[0, 0\] for patch_size"),
    ],
)
def test_a_config_of_strange_values_is_an_error(
    config: dict[str, Any], normalization: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convention_of(config, normalization=normalization)
