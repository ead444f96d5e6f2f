import math
import re
from pathlib import Path
from typing import Any  # lines of metrics.jsonl
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.report.plots import (
    plot_capacity,
    plot_load_by_layer,
    plot_load_by_time,
    plot_training,
    save_image_grid,
)

EDGE, MARGIN = 128, 10


def words(svg: str) -> set[str]:
    """The texts of a figure: matplotlib draws letters as paths and leaves each text as a comment."""
    assert ElementTree.fromstring(svg.encode()).tag.endswith("svg")
    return {text.strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL)}


def test_training_panels_are_those_that_have_data() -> None:
    records: list[dict[str, Any]] = [
        {"step": step, "loss/diffusion": 1 / step, "moe/threshold/3": [0.1, 0.2]} for step in range(1, 100)
    ]
    records[50]["loss/validation"] = 0.5
    shown = words(plot_training(records))
    assert {
        "Diffusion loss",
        "training",
        "validation",
        "Dynamic threshold, mean over experts",
        "block 3",
    } <= shown
    assert not shown & {"Router losses", "Gradient norm", "Learning rate", "Images a second"}


def test_a_run_without_lines_or_with_no_finite_number_still_gives_a_figure() -> None:
    assert "Diffusion loss" not in words(plot_training([]))
    assert "Diffusion loss" not in words(plot_training([{"step": 1, "loss/diffusion": math.nan}]))
    assert "Diffusion loss" in words(
        plot_training([{"step": 1, "loss/diffusion": math.nan}, {"step": 2, "loss/diffusion": 1.0}])
    )


def test_load_by_layer_is_written_into_its_cells() -> None:
    shown = words(plot_load_by_layer(np.array([[0.5, 1.25], [1.0, 9.0]]), [1, 3]))
    assert {"0.50", "1.25", "1.00", "9.00", "block", "expert"} <= shown


def test_load_of_many_experts_is_left_to_colours() -> None:
    assert "1.00" not in words(plot_load_by_layer(np.ones((2, 40)), [1, 3]))


def test_load_by_time_has_a_panel_a_block_and_picks_some_of_many() -> None:
    times = np.linspace(1, 0, 5, endpoint=False).tolist()
    assert {"block 1", "block 3"} <= words(plot_load_by_time(np.ones((5, 2, 4)), [1, 3], times))
    many = [
        text
        for text in words(plot_load_by_time(np.ones((5, 30, 4)), list(range(1, 61, 2)), times))
        if text.startswith("block ")
    ]
    assert len(many) == 8 and {"block 1", "block 59"} <= set(many)


def test_capacity_shows_blocks_and_their_mean() -> None:
    assert {"block 1", "block 3", "mean"} <= words(
        plot_capacity(np.ones((5, 2, 4)), [1, 3], [1.0, 0.8, 0.6, 0.4, 0.2])
    )


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
