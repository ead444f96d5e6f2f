import re
from typing import Any  # a figure in the place of its SVG
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffmoe_scale.report.plots import (
    COLORS,
    Curve,
    _draw_panel,
    _limit_spikes,
    _running_mean,
    plot_capacity,
    plot_curves,
    plot_histograms,
    plot_load_by_layer,
    plot_load_by_time,
    spread_places,
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


def axes_of() -> Axes:
    return Figure().add_subplot()


def test_places_are_spread_evenly_with_both_ends() -> None:
    assert spread_places(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread_places(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread_places(1, 5).tolist() == [0]


@pytest.mark.parametrize("count", [7, 1000])
def test_the_running_mean_is_that_of_the_neighbours_that_are_known(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    values[2:4] = np.nan
    if count > 100:
        values[500:540] = np.nan
    reach = max(2, count // 100)
    for place, found in enumerate(_running_mean(values)):
        near = values[max(0, place - reach) : place + reach + 1]
        known = near[np.isfinite(near)]
        assert found == pytest.approx(known.mean()) if len(known) else np.isnan(found)


def test_single_spikes_leave_the_frame_of_a_long_curve_alone() -> None:
    values = np.append(np.linspace(1.0, 2.0, 999), 500.0)
    axes = axes_of()
    _limit_spikes(axes, values)
    low, high = axes.get_ylim()
    assert 0.9 < low < 1.0 and 2.0 < high < 2.3
    axes = axes_of()
    _limit_spikes(axes, np.array([1.0, 2.0, 500.0]))
    assert axes.get_ylim() == (0.0, 1.0)  # as it was


def test_a_panel_draws_noise_faintly_and_bands_between_their_bounds() -> None:
    steps = np.arange(100)
    noisy = Curve("loss", steps, np.where(steps % 2, 1.0, 3.0))
    axes = axes_of()
    _draw_panel(axes, "loss", [noisy])
    faint, mean = axes.lines
    assert np.array_equal(faint.get_ydata(), noisy.values) and faint.get_alpha() == 0.25
    assert np.allclose(np.asarray(mean.get_ydata())[10:-10], [2.2, 1.8] * 40)
    flat = np.full(100, 2.0)
    band = Curve("b", steps, flat, color=9, is_noisy=False, low=flat - 1, high=flat + 1)
    axes = axes_of()
    _draw_panel(axes, "b", [band])
    (drawn,) = axes.collections
    heights = np.concatenate([np.asarray(path.vertices)[:, 1] for path in drawn.get_paths()])
    assert (heights.min(), heights.max()) == (1.0, 3.0) and band.paint == COLORS[1]
    assert axes.get_legend() is not None
    axes = axes_of()
    _draw_panel(axes, "many", [Curve(f"{number}", steps, flat) for number in range(11)])
    assert axes.get_legend() is None


def test_panels_without_curves_are_left_out_and_a_figure_is_the_same_again() -> None:
    curve = Curve("a", np.arange(3), np.arange(3.0))
    figure = plot_curves({"empty": [], "full": [curve]})
    assert "full" in words(figure) and "empty" not in words(figure)
    assert "<dc:date>" not in figure
    numbers = plot_histograms({"none": [], "width": [1, 2, 2]})
    assert "width" in words(numbers) and "none" not in words(numbers)


def test_cells_of_a_heat_map_are_experts_by_calls_and_hot_ones_are_cut(kept: list[Figure]) -> None:
    load_TLE = np.random.default_rng(0).uniform(0, 9, (5, 2, 4))
    plot_load_by_time(load_TLE, [1, 3], [1.0, 0.8, 0.6, 0.4, 0.2])
    images: list[Any] = [axes.images[0] for axes in kept[0].axes[:2]]
    for layer, image in enumerate(images):
        assert np.allclose(image.get_array(), load_TLE[:, layer].T) and image.norm.vmax == 4.0
    assert images[-1].colorbar.extend == "max"
    plot_load_by_layer(np.array([[0.1, 1.0, 3.0]]), [1])
    assert [text.get_color() for text in kept[1].axes[0].texts] == ["white", "#1f2933", "white"]
    mild: Any = kept[1].axes[0].images[0]
    assert mild.colorbar.extend == "neither" and mild.norm.vmax == 3.0


def test_capacity_is_the_mean_over_experts_and_the_thick_line_that_over_layers(kept: list[Figure]) -> None:
    load_TLE, times = np.random.default_rng(0).uniform(0, 2, (3, 2, 4)), [1.0, 0.6, 0.2]
    plot_capacity(load_TLE, [1, 3], times)
    (axes,) = kept[0].axes
    drawn = np.array([line.get_ydata() for line in axes.lines[:3]])
    assert np.allclose(drawn, [*load_TLE.mean(2).T, load_TLE.mean((1, 2))])
    assert axes.xaxis_inverted() and axes.get_ylim()[0] == 0
