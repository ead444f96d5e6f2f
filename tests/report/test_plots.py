import re
from xml.etree import ElementTree

import numpy as np

from diffmoe_scale.report.plots import (
    Curve,
    plot_capacity,
    plot_curves,
    plot_load_by_layer,
    plot_load_by_time,
)


def words(svg: str) -> set[str]:
    """The texts of a figure: matplotlib draws letters as paths and leaves each text as a comment."""
    assert ElementTree.fromstring(svg.encode()).tag.endswith("svg")
    return {text.strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL)}


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


def test_value_that_does_not_move_is_not_drawn_by_its_last_digits() -> None:
    values = np.array([0.99999994, 0.99999988, 0.99999994])
    shown = words(plot_curves({"Cosine": [Curve("", np.arange(3), values, is_noisy=False)]}))
    assert not any(text.startswith("1e") for text in shown)
    assert any(text in shown for text in ("1.05", "1.050", "1.10", "1.1")), "ticks around the value"
