"""A small encoder of the embedded scenes, for variants with representation alignment: trained here, on labels
that the scenes have, and written as transformers writes a DINOv2.

It learns to name the shape and the colour of what covers the centre of each patch. B pictures, N patches.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # transformers' networks carry few types

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.encoders.text.folder import CONFIG_FILE
from diffmoe_scale.encoders.vision.teacher import PREPROCESSOR_FILE, new_dinov2
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.nn.generator import seeded
from diffmoe_scale.scenes.scenes import draw_scene
from diffmoe_scale.scenes.shapes import COLORS, SHAPES, SceneObject, render
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

MADE_WITH = "made_with.json"
SIZE, GRID = 32, 8
WIDTH, DEPTH, HEADS = 96, 4, 4
BATCH = 64
PEAK_RATE, WARMUP_SHARE = 1e-3, 0.1
LOG_EVERY = 50


def make_teacher(folder: Path, *, steps: int) -> None:
    """Train the encoder unless it is there; the folder appears when it is whole.

    Raises: ValueError for a folder that holds something else; OSError.
    """
    made_with = {"steps": steps, "size": SIZE, "grid": GRID, "width": WIDTH, "depth": DEPTH}
    if folder.exists():
        _check(folder, made_with)
        return
    logger.info("training the encoder %s: %s of %d pictures", folder, counted(steps, "step"), BATCH)
    network = train_teacher(steps)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    network.save_pretrained(unfinished)
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    replace_file(unfinished / PREPROCESSOR_FILE, json.dumps(preprocessor).encode())
    replace_file(unfinished / MADE_WITH, json.dumps(made_with).encode())
    unfinished.rename(folder)


def _check(folder: Path, made_with: dict[str, int]) -> None:
    try:
        found = parse_json((folder / MADE_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"study.teacher is {folder}, which is no encoder that a study made ({error}); choose another "
            "folder"
        ) from error
    if found != made_with or not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"study.teacher is {folder}, made with {found}; expected {made_with}: remove it, or set "
            "study.teacher_steps"
        )


def train_teacher(steps: int) -> Any:
    """A Dinov2Model in fp32; a pure function of its argument."""
    with seeded(0):
        network = new_dinov2(size=SIZE, patch=SIZE // GRID, width=WIDTH, depth=DEPTH, heads=HEADS)
        heads = nn.Linear(WIDTH, len(SHAPES) + len(COLORS) + 2)
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.01)
    network.train()
    for step in range(1, steps + 1):
        rate = min(1.0, step / max(1.0, WARMUP_SHARE * steps)) * (steps - step + 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
        pictures_BCHW, shape_BN, color_BN = labelled_pictures(range((step - 1) * BATCH, step * BATCH))
        states_BND = network(pictures_BCHW).last_hidden_state[:, 1:]
        shapes_BNC, colors_BNC = heads(states_BND).split([len(SHAPES) + 1, len(COLORS) + 1], dim=-1)
        loss = F.cross_entropy(shapes_BNC.flatten(0, 1), shape_BN.flatten())
        loss = loss + F.cross_entropy(colors_BNC.flatten(0, 1), color_BN.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0 or step == steps:
            right = (shapes_BNC.argmax(-1) == shape_BN) & (colors_BNC.argmax(-1) == color_BN)
            share = float(right[shape_BN > 0].float().mean())
            logger.info("step %d: loss %.4f, patches of objects named right %.3f", step, float(loss), share)
    return network.eval()


def labelled_pictures(indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Training scenes in [-1, 1], and for each patch the numbers of shape and colour, 0 for none."""
    pictures, shapes, colors = [], [], []
    for index in indices:
        objects = draw_scene(index, seed=0, level="easy", split="train").objects
        pictures.append(render(objects, SIZE))
        shape_N, color_N = patch_labels(objects)
        shapes.append(shape_N)
        colors.append(color_N)
    pixels_BHWC = torch.from_numpy(np.stack(pictures)).float()
    return (
        pixels_BHWC.permute(0, 3, 1, 2) / 127.5 - 1,
        torch.from_numpy(np.stack(shapes)),
        torch.from_numpy(np.stack(colors)),
    )


def patch_labels(objects: Sequence[SceneObject]) -> tuple[np.ndarray, np.ndarray]:
    """[N] numbers of the shape and the colour of the object within whose radius a patch's centre lies."""
    centers = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    y_N, x_N = (axis.ravel() for axis in np.meshgrid(centers, centers, indexing="ij"))
    shape_N, color_N = np.zeros(GRID**2, dtype=np.int64), np.zeros(GRID**2, dtype=np.int64)
    for item in objects:
        inside_N = np.hypot(x_N - item.x, y_N - item.y) < item.radius
        shape_N[inside_N] = 1 + list(SHAPES).index(item.shape)
        color_N[inside_N] = 1 + list(COLORS).index(item.color)
    return shape_N, color_N
