"""Grids of pictures: places, sizes, captions, marks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.telemetry.picture_grid import save_image_grid

EDGE, MARGIN = 128, 10


def grid(
    path: Path,
    images_BCHW: torch.Tensor,
    captions: list[str],
    *,
    columns: int,
    passed: list[bool] | None = None,
) -> np.ndarray:
    save_image_grid(images_BCHW, captions, path, columns=columns, passed=passed)
    return np.asarray(Image.open(path))


def test_small_pictures_are_enlarged_by_whole_pixels_in_reading_order(tmp_path: Path) -> None:
    images_BCHW = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    canvas = grid(tmp_path / "grid.png", images_BCHW, ["a", "b", "c"], columns=2)
    assert canvas.shape[1] == MARGIN + 2 * (EDGE + MARGIN)
    row_height = (canvas.shape[0] - MARGIN) // 2
    for index, image_CHW in enumerate(images_BCHW):
        top, left = MARGIN + index // 2 * row_height, MARGIN + index % 2 * (EDGE + MARGIN)
        expected = ((image_CHW.permute(1, 2, 0).numpy() + 1) * 127.5).round().repeat(4, 0).repeat(4, 1)
        assert (canvas[top : top + EDGE, left : left + EDGE] == expected).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.png"]


def test_numbers_outside_of_the_range_are_clipped_and_nan_is_grey(tmp_path: Path) -> None:
    values = torch.tensor([-3.0, 3.0, math.nan, math.inf])
    canvas = grid(
        tmp_path / "grid.png", values[:, None, None, None].expand(4, 3, 8, 8), ["", "", "", ""], columns=4
    )
    assert [canvas[MARGIN, MARGIN + i * (EDGE + MARGIN)].tolist() for i in range(4)] == [
        [0] * 3,
        [255] * 3,
        [128] * 3,
        [255] * 3,
    ]


def test_a_long_caption_makes_no_picture_wider(tmp_path: Path) -> None:
    captions = ["a red circle " * 30, "\N{CJK UNIFIED IDEOGRAPH-7EA2}" * 200]
    shapes = [
        grid(tmp_path / "grid.png", torch.zeros(1, 3, 32, 32), [caption], columns=1).shape
        for caption in (captions[0], captions[1], "a")
    ]
    assert {shape[1] for shape in shapes} == {EDGE + 2 * MARGIN} and shapes[0][0] > shapes[2][0]


@pytest.mark.parametrize("passed, rgb", [(True, (11, 122, 91)), (False, (201, 42, 42))])
def test_marks_frame_a_picture_in_green_or_red(
    tmp_path: Path, passed: bool, rgb: tuple[int, int, int]
) -> None:
    canvas = grid(tmp_path / "grid.png", torch.ones(1, 3, 32, 32), ["a"], columns=8, passed=[passed])
    assert tuple(canvas[MARGIN - 2, MARGIN + 5]) == rgb


def test_captions_must_be_as_many_as_pictures(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="2 images with 1 captions"):
        save_image_grid(torch.zeros(2, 3, 8, 8), ["a"], tmp_path / "grid.png", columns=2)


@pytest.mark.parametrize(
    "caption", ["\udcff\ud800", "\x00\x1b[31m", "a" * 1_000_000, " ", "\N{LATIN SMALL LETTER A}\u0301"]
)
def test_any_caption_can_be_drawn(tmp_path: Path, caption: str) -> None:
    assert grid(tmp_path / "grid.png", torch.zeros(1, 3, 8, 8), [caption], columns=1).shape[2] == 3
