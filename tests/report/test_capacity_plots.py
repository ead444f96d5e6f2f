"""What the figures of a sweep draw: numbers of the points, not only that they are drawn."""

from dataclasses import replace
from typing import Any  # containers of bars

import numpy as np
import pytest
from matplotlib.figure import Figure

from diffmoe_scale.evaluation.sweep_results import KindCapacity
from diffmoe_scale.report.capacity_plots import plot_by_time, plot_kinds, plot_layers, plot_sweep
from tests.report.test_capacity import POINTS, PROFILE, point


def test_bars_of_kinds_rise_and_show_their_errors(kept: list[Figure]) -> None:
    kinds = [
        KindCapacity(kind=kind, capacity=capacity, error=error, pictures=3)
        for kind, capacity, error in (("b", 1.5, 0.2), ("a" * 40, 0.5, 0.1), ("c_c", 1.0, 0.3))
    ]
    plot_kinds(replace(PROFILE, kinds=kinds))
    (axes,) = kept[0].axes  # without curves
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1.0, 1.5]  # type: ignore[attr-defined]
    errors: Any = axes.containers[0]
    lengths = [float(np.ptp(np.asarray(one)[:, 0])) for one in errors.lines[2][0].get_segments()]
    assert lengths == pytest.approx([0.2, 0.6, 0.4])
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{'a' * 31}...", "c c", "b"]
    with_curve = replace(kinds[0], times=[1.0], capacity_T=[1.5])
    plot_kinds(replace(PROFILE, kinds=[with_curve, kinds[1]]))
    plot_kinds(replace(PROFILE, kinds=[with_curve]))
    assert [len(figure.axes) for figure in kept] == [1, 1, 2]


def test_layers_and_halves_are_means(kept: list[Figure]) -> None:
    """Three calls of two layers: [1, 2], [0.5, 0.7] and [3, 4]."""
    plot_layers(POINTS[:1])
    assert np.allclose(np.asarray(kept[0].axes[0].lines[0].get_ydata()), [1.5, 6.7 / 3])
    plot_by_time(POINTS)
    _, halves = kept[1].axes
    assert np.allclose(np.asarray(halves.lines[0].get_ydata()), [1.5, 0.6])


def test_a_sweep_has_two_metrics_whose_axes_need_not_begin_at_0(kept: list[Figure]) -> None:
    metrics = {"fid": 12.0, "kid": 0.1, "is": 50.0}
    points = [
        replace(point(0.0, 1.0, score=None), metrics=metrics),
        replace(point(0.5, 0.5, score=None), metrics={**metrics, "fid": 13.0}),
    ]
    plot_sweep(points)
    assert [axes.get_ylabel() for axes in kept[0].axes] == ["fid", "kid", "operations of a picture (GFLOP)"]
    assert kept[0].axes[0].get_ylim()[0] > 11 and kept[0].axes[2].get_ylim()[0] == 0
    _, trained = kept[0].axes[0].get_legend_handles_labels()
    assert sorted(trained) == ["dynamic threshold, as trained", "gamma"]
    first = kept[0].axes[0].lines[0]
    assert list(np.asarray(first.get_xdata())) == [0.5]  # the dynamic threshold is no point of its line
