"""The section of a sweep of capacities: whatever the sweep has and has not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.sweep_results import KindCapacity, Point, Profile, Sweep, write_sweep
from diffmoe_scale.report.capacity import (
    capacity_section,
    format_sweep,
    header_of,
    newest_sweep,
    rows_of,
)
from diffmoe_scale.report.capacity_plots import (
    _draw_line,
    calibrations,
    mean_over_halves,
    plot_kinds,
    plot_sweep,
    shown_point,
)
from diffmoe_scale.report.html import Markup
from diffmoe_scale.report.report import write_report
from diffmoe_scale.sampling.call_capacity import TimeCurve
from tests.report.runs import make_run
from tests.report.test_plots import words

PROFILE = Profile(
    layers=[1, 3],
    halves={
        "conditional": TimeCurve([1.0, 0.5], [[1.0, 2.0], [0.5, 0.7]]),
        "unconditional": TimeCurve([1.0], [[3.0, 4.0]]),
    },
    kinds=[
        KindCapacity(kind="two_objects", capacity=1.1, error=0.1, pictures=3, times=[1.0], capacity_T=[1.2]),
        KindCapacity(kind="colors", capacity=0.9, error=0.1, pictures=3, times=[1.0], capacity_T=[0.8]),
    ],
    most=[("a <b>star</b>", 1.5)],
    least=[("a circle", 0.5)],
)


def point(asked_for: float, capacity: float, *, score: float | None = 0.5, median: float = 0.0) -> Point:
    return Point(
        asked_for=asked_for,
        calibration="gamma",
        capacity=capacity,
        calls=26,
        flops=5e9 * capacity,
        pictures=12,
        score=score,
        error=None if score is None else 0.04,
        profile=PROFILE,
        ms={"q1": median - 1, "median": median, "q3": median + 2} if median else {},
    )


def sweep(*points: Point) -> Sweep:
    return Sweep(
        checkpoint="run/checkpoints/step_00000100",
        step=100,
        weights="ema",
        made_of={},
        sampling={},
        points=list(points),
        timed_batch=8,
        device="CPU, 1 thread",
    )


POINTS = [point(0.5, 0.49, median=40.0), point(0.0, 0.97, median=50.0), point(1.5, 1.52, median=60.0)]


def test_a_row_holds_a_point_and_its_time_over_that_nearest_to_capacity_1() -> None:
    assert rows_of(POINTS)[0] == ("gamma 0.5", "0.490", "0.500 +/- 0.040", "40.0", "0.80", "2.45 GFLOP", "26")
    assert [row[0] for row in rows_of(POINTS)] == ["gamma 0.5", "as trained", "gamma 1.5"]
    assert [row[4] for row in rows_of(POINTS)] == ["0.80", "1.00", "1.20"]
    assert rows_of([point(0.5, 0.5, score=None)])[0][2:5] == ("", "", "")
    lines = format_sweep(sweep(*POINTS)).splitlines()
    assert len(lines) == 4 and lines[0].startswith("point       capacity  score")


def test_the_section_shows_table_figures_and_escaped_prompts() -> None:
    section = capacity_section(sweep(*POINTS))
    assert section.count("<img") == 4
    assert "a &lt;b&gt;star&lt;/b&gt; (1.50)" in section and "<b>star" not in section
    assert "Step 100 (run/checkpoints/step_00000100), weights ema; times of 8 pictures" in section
    assert capacity_section(None) == Markup("")


def test_panels_are_those_that_were_measured() -> None:
    shown = words(plot_sweep(POINTS))
    assert {
        "score, mean over suites",
        "wall time of a picture (ms)",
        "operations of a picture (GFLOP)",
    } <= shown
    assert {"gamma", "dynamic threshold, as trained"} <= shown
    without = words(plot_sweep([point(0.5, 0.5, score=None)]))
    assert "operations of a picture (GFLOP)" in without
    assert not without & {"score, mean over suites", "wall time of a picture (ms)"}


def test_metrics_have_columns_and_panels() -> None:
    points = [replace(point(0.5, 0.5), metrics={"fid": 12.345, "kid": 0.1}), point(1.0, 1.0)]
    assert header_of(points)[3:5] == ("fid", "kid")
    assert [row[3:5] for row in rows_of(points)] == [("12.35", "0.1"), ("", "")]
    assert {"fid", "kid"} <= words(plot_sweep(points))


def test_times_of_both_halves_are_averaged() -> None:
    assert mean_over_halves(PROFILE) == ([1.0, 0.5], pytest.approx([2.5, 0.6]))


def test_one_point_alone_and_many_classes_are_drawn() -> None:
    assert shown_point(POINTS).name == "as trained"
    assert capacity_section(sweep(POINTS[0])).count("<img") == 4
    classes = [
        KindCapacity(kind=f"class {number}", capacity=number / 1000, error=0.0, pictures=1)
        for number in range(1000)
    ]
    shown = words(plot_kinds(replace(PROFILE, kinds=classes)))
    assert {"class 0", "class 999"} <= shown and "class 500" not in shown


def test_the_newest_sweep_that_can_be_read_is_in_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run")
    directory = RunDirectory(run)
    assert newest_sweep(directory) is None
    write_sweep(directory.sweeps / "a.json", sweep(*POINTS))
    write_sweep(directory.sweeps / "b.json", sweep())
    (directory.sweeps / "c.json").write_text("{")
    found = newest_sweep(directory)
    assert found is not None and len(found.points) == 3
    assert "c.json is left out of the report" in caplog.text
    assert ">Capacity<" in write_report(run).read_text(encoding="utf-8")


def bounds(axes: Axes, number: int) -> list[float]:
    """Of the error bar of a point."""
    (bars,) = axes.collections
    assert isinstance(bars, LineCollection)
    return [float(y) for _, y in np.asarray(bars.get_segments()[number])]


@pytest.mark.parametrize(
    ("panel", "y", "middle"),
    [
        ("time", [40.0, 50.0, 60.0], [49.0, 52.0]),  # its quartiles
        ("operations", [2.45, 4.85, 7.6], [4.85, 4.85]),
        ("score", [0.5, 0.5, 0.5], [0.46, 0.54]),
    ],
)
def test_points_lie_at_their_capacity_between_their_bounds(
    panel: str, y: list[float], middle: list[float]
) -> None:
    axes = Figure().add_subplot()
    _draw_line(axes, panel, POINTS[::-1], label="a", color="black", marker="o")
    (line,) = axes.lines
    assert np.allclose(np.asarray(line.get_xdata()), [0.49, 0.97, 1.52])
    assert np.allclose(np.asarray(line.get_ydata()), y) and bounds(axes, 1) == pytest.approx(middle)


def test_the_dynamic_threshold_is_of_no_calibration() -> None:
    assert calibrations([point(0.0, 1.0), replace(point(0.5, 0.5), calibration="quantile")]) == ["quantile"]
