"""Figures of a sweep of capacities as SVG text."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffmoe_scale.evaluation.sweep_results import KindCapacity, Point, Profile
from diffmoe_scale.report.plots import COLORS, GRAY, INK, style_axes, svg_text

AS_TRAINED = "dynamic threshold, as trained"
MAX_BARS = 24
MAX_METRICS = 2
HALF_COLORS = {"conditional": COLORS[0], "unconditional": COLORS[1]}


def plot_sweep(points: Sequence[Point]) -> str:
    """Scores and metrics (where they were measured), wall time and operations of a picture against its
    capacity; a line for each calibration, and the dynamic threshold as a star."""
    panels = []
    if any(point.score is not None for point in points):
        panels.append("score")
    panels += metrics_of(points)[:MAX_METRICS]
    if any(point.ms for point in points):
        panels.append("time")
    panels.append("operations")
    figure = Figure(figsize=(3.7 * len(panels), 3.2), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for color, calibration in zip(COLORS, calibrations(points), strict=False):
            shown = [point for point in points if point.calibration == calibration and point.asked_for]
            _draw_line(axes, panel, shown, label=calibration, color=color, marker="o")
        trained = [point for point in points if point.asked_for == 0]
        _draw_line(axes, panel, trained, label=AS_TRAINED, color=INK, marker="*")
        _finish(axes, panel)
    return svg_text(figure)


def metrics_of(points: Sequence[Point]) -> list[str]:
    """Names of the metrics that any point has, in the order that they were asked for."""
    return list(dict.fromkeys(name for point in points for name in point.metrics))


def calibrations(points: Sequence[Point]) -> list[str]:
    return sorted({point.calibration for point in points if point.asked_for})


def plot_by_time(points: Sequence[Point]) -> str:
    """Capacity over the times of the calls: of each point (both halves of guidance together), and of one."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(points)))
    for point, shade in zip(points, shades, strict=True):
        times, capacity_T = mean_over_halves(point.profile)
        axes.plot(times, capacity_T, color=shade, linewidth=1.6, label=point.name)
    axes.set_title("all points", fontsize=10, loc="left", color=INK, fontweight="bold")
    _finish_times(axes, columns=4)
    axes = figure.add_subplot(1, 2, 2)
    shown = shown_point(points)
    for half, curve in shown.profile.halves.items():
        capacity_TL = np.array(curve.capacity_TL)
        axes.plot(curve.times, capacity_TL.mean(1), color=HALF_COLORS[half], linewidth=2, label=half)
        for number, capacity_T in enumerate(capacity_TL.T):
            label = f"{half}, each layer" if number == 0 else None
            axes.plot(curve.times, capacity_T, color=HALF_COLORS[half], linewidth=0.8, alpha=0.4, label=label)
    title = f"{shown.name}, halves of guidance"
    axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    _finish_times(axes, columns=1)
    return svg_text(figure)


def plot_layers(points: Sequence[Point]) -> str:
    """Capacity of each layer, the mean over calls, of each point."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.add_subplot()
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(points)))
    for point, shade in zip(points, shades, strict=True):
        rows_KL = [row for curve in point.profile.halves.values() for row in curve.capacity_TL]
        blocks = [str(block) for block in point.profile.layers]
        axes.plot(blocks, np.mean(rows_KL, axis=0), color=shade, marker="o", markersize=4, label=point.name)
    axes.set(xlabel="block", ylabel="capacity")
    axes.set_ylim(bottom=0)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    return svg_text(figure)


def plot_kinds(profile: Profile) -> str:
    """Capacity of each kind of prompt or class, with its standard error: of many, those with most and least;
    and over the times of the calls, where they are few."""
    kinds = sorted(profile.kinds, key=lambda kind: kind.capacity)
    if len(kinds) > MAX_BARS:
        kinds = kinds[: MAX_BARS // 2] + kinds[-MAX_BARS // 2 :]
    has_curves = all(kind.times for kind in kinds)
    figure = Figure(figsize=(11, max(3.0, 0.8 + 0.22 * len(kinds))), layout="constrained")
    axes = figure.add_subplot(1, 2 if has_curves else 1, 1)
    axes.barh(
        [_short(kind.kind) for kind in kinds],
        [kind.capacity for kind in kinds],
        xerr=[kind.error for kind in kinds],
        color=COLORS[0],
        ecolor=INK,
    )
    axes.axvline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("capacity, mean over pictures")
    style_axes(axes)
    if has_curves:
        _draw_kind_curves(figure.add_subplot(1, 2, 2), kinds)
    return svg_text(figure)


def _draw_kind_curves(axes: Axes, kinds: Sequence[KindCapacity]) -> None:
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(kinds)))
    for kind, shade in zip(kinds, shades, strict=True):
        axes.plot(kind.times, kind.capacity_T, color=shade, linewidth=1.4, label=_short(kind.kind))
    _finish_times(axes, columns=3)


def shown_point(points: Sequence[Point]) -> Point:
    """The point that stands for all: that whose capacity is nearest to 1."""
    return min(points, key=lambda point: abs(point.capacity - 1))


def mean_over_halves(profile: Profile) -> tuple[list[float], list[float]]:
    """Falling times, and at each the mean over layers and over the halves that were called."""
    found: dict[float, list[float]] = {}
    for curve in profile.halves.values():
        for time, capacity_L in zip(curve.times, curve.capacity_TL, strict=True):
            found.setdefault(time, []).append(float(np.mean(capacity_L)))
    times = sorted(found, reverse=True)
    return times, [float(np.mean(found[time])) for time in times]


def _draw_line(
    axes: Axes, panel: str, points: Sequence[Point], *, label: str, color: str, marker: str
) -> None:
    rows = []
    for point in points:
        match panel:
            case "score" if point.score is not None:
                rows.append((point.capacity, point.score, point.error or 0.0, point.error or 0.0))
            case "time" if point.ms:
                median, low, high = (point.ms[name] for name in ("median", "q1", "q3"))
                rows.append((point.capacity, median, median - low, high - median))
            case "operations":
                rows.append((point.capacity, point.flops / 1e9, 0.0, 0.0))
            case _ if panel in point.metrics:
                rows.append((point.capacity, point.metrics[panel], 0.0, 0.0))
    if rows:
        x, y, below, above = np.array(sorted(rows)).T
        size = 10 if marker == "*" else 4
        axes.errorbar(
            x, y, yerr=[below, above], color=color, marker=marker, markersize=size, label=label, linewidth=1.6
        )


def _finish(axes: Axes, panel: str) -> None:
    labels = {
        "score": "score, mean over suites",
        "time": "wall time of a picture (ms)",
        "operations": "operations of a picture (GFLOP)",
    }
    axes.axvline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="capacity (measured)", ylabel=labels.get(panel, panel))
    axes.set_xlim(left=0)
    if panel in labels:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.yaxis.label.set_fontsize(8)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8)


def _finish_times(axes: Axes, *, columns: int) -> None:
    axes.axhline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="t (1 = noise, 0 = data)", ylabel="capacity")
    style_axes(axes)
    # Below the axes: the curves of many points leave no free corner.
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _short(text: str) -> str:
    return text.replace("_", " ") if len(text) <= 32 else f"{text[:31]}..."
