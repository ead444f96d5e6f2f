"""An autoencoder that has learned to keep pictures keeps them through ours, whole and in tiles."""

import math
from pathlib import Path
from typing import Any  # diffusers' models carry no useful types

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.scenes.scenes import draw_scene
from diffmoe_scale.scenes.shapes import render
from tests.encoders.autoencoder.models import build, tiny_model

STEPS, BATCH = 150, 8
pytestmark = pytest.mark.slow


def scenes(first: int, size: int) -> Tensor:
    """Pictures of shapes, [BATCH, 3, size, size] in [-1, 1]."""
    drawn = [draw_scene(first + number, seed=0, level="easy") for number in range(BATCH)]
    pixels_BHWC = np.stack([render(list(scene.objects), size) for scene in drawn])
    return torch.from_numpy(pixels_BHWC).float().permute(0, 3, 1, 2) / 127.5 - 1


def trained_model() -> Any:
    """About 8 seconds on one core."""
    model = tiny_model(
        block_out_channels=(16, 16, 32), latent_channels=4, scaling_factor=0.5, shift_factor=0.1
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(STEPS):
        images_BCHW = scenes(step * BATCH, 32)
        z_BCHW = model.encode(images_BCHW).latent_dist.mean
        loss = (model.decode(z_BCHW).sample - images_BCHW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def decibels(images_BCHW: Tensor, expected_BCHW: Tensor) -> float:
    """Peak signal to noise ratio; the peak is 2."""
    return 10 * math.log10(4 / float((images_BCHW - expected_BCHW).square().mean()))


def test_pictures_survive_encoding_and_decoding_whole_and_in_tiles(tmp_path: Path) -> None:
    trained_model().save_pretrained(tmp_path)
    images_BCHW = scenes(10**6, 128)
    grey = decibels(images_BCHW.mean((2, 3), keepdim=True), images_BCHW)
    autoencoders = {
        "whole": build(tmp_path),
        "bf16": build(tmp_path, precision="bf16"),
        "tiles": build(tmp_path, tile=64),
    }
    found = {}
    for name, autoencoder in autoencoders.items():
        found[name] = decibels(autoencoder.decode(autoencoder.encode(images_BCHW)), images_BCHW)
    # Measured: grey 16.6, whole and bf16 19.8, tiles 19.5.
    assert found["whole"] > grey + 2
    assert abs(found["bf16"] - found["whole"]) < 0.5
    assert found["tiles"] > found["whole"] - 1
