"""The study's own encoder of scenes: its labels, its folder, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.encoders.vision.teacher import Teacher
from diffmoe_scale.scenes.shapes import COLORS, SHAPES, SceneObject
from diffmoe_scale.study.teacher import labelled_pictures, make_teacher, patch_labels


def test_a_patch_is_labelled_by_what_covers_its_centre() -> None:
    """A small object in the upper right: x to the right, y downward, patches in rows."""
    item = SceneObject("circle", "red", x=0.625, y=-0.625, radius=0.2)
    shape_N, color_N = patch_labels([item])
    rows, columns = np.nonzero(shape_N.reshape(8, 8))
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(1, 6)}
    assert shape_N.max() == 1 + list(SHAPES).index("circle") and color_N.max() == 1 + list(COLORS).index(
        "red"
    )


def test_a_labelled_patch_has_the_colour_of_its_label() -> None:
    pictures, _, color_BN = labelled_pictures(range(20))
    inner_BNC = pictures.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)).flatten(2).transpose(1, 2)
    table = torch.tensor([(128, 128, 128), *COLORS.values()]) / 127.5 - 1
    nearest_BN = (inner_BNC[:, :, None] - table).norm(dim=-1).argmin(-1)
    is_object = color_BN > 0
    assert float((nearest_BN == color_BN)[is_object].float().mean()) > 0.6


def test_the_encoder_is_made_once_and_is_one_that_alignment_reads(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    make_teacher(folder, steps=2)
    first = Teacher(str(folder), precision="fp32")
    pictures, _, _ = labelled_pictures(range(2))
    assert first.features(pictures, (8, 8)).shape == (2, 64, 96)
    # What it was trained on goes in unchanged.
    torch.testing.assert_close(first.prepare(pictures, (32, 32)), pictures)
    make_teacher(folder, steps=2)
    assert Teacher(str(folder), precision="fp32").fingerprint() == first.fingerprint()
    with pytest.raises(ValueError, match=r"made with .*'steps': 2.* expected .*'steps': 3"):
        make_teacher(folder, steps=3)
    with pytest.raises(ValueError, match="is no encoder that a study made"):
        make_teacher(tmp_path, steps=3)
