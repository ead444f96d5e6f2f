"""Figures of a run as SVG text.

T sampling steps, L MoE layers, E experts. Figures are made without pyplot: no display, no global state.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a colour of matplotlib

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

INK, GRAY, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLORS = ("#2563eb", "#d9480f", "#0b7a5b", "#9c36b5", "#b08900", "#0c8599", "#c2255c", "#5c5f66")
LOAD_COLORS = "RdBu_r"
PANEL_COLUMNS = 2
MAX_POINTS = 1500
MAX_ANNOTATED_EXPERTS = 16
MAX_LAYER_PANELS = 8
# Loads beyond this share one colour: a hot expert must not wash out the differences between the others.
MAX_LOAD_COLOR = 4.0


@dataclass(frozen=True)
class Curve:
    """One line of a panel: finite values or NaN by step. A noisy one is drawn faint, with its running mean;
    of others `low` and `high` bound a band around it.

    Its colour is number `color` of COLORS or, where `shade` in [0, 1] is given, that of a scale.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    color: int = 0
    shade: float | None = None
    is_noisy: bool = True
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def paint(self) -> Any:  # a colour of matplotlib
        return COLORS[self.color % len(COLORS)] if self.shade is None else colormaps["viridis"](self.shade)


def plot_curves(panels: Mapping[str, Sequence[Curve]]) -> str:
    """A panel for each title, with its curves by step; panels without curves are left out."""
    shown = {title: curves for title, curves in panels.items() if curves}
    rows = max(1, math.ceil(len(shown) / PANEL_COLUMNS))
    figure = Figure(figsize=(11, 2.8 * rows), layout="constrained")
    for index, (title, curves) in enumerate(shown.items(), start=1):
        _draw_panel(figure.add_subplot(rows, PANEL_COLUMNS, index), title, curves)
    return svg_text(figure)


def plot_load_by_layer(load_LE: np.ndarray, layers: Sequence[int]) -> str:
    """Tokens that each expert of each layer took, over a fair share."""
    num_layers, num_experts = load_LE.shape
    size = (min(11, 2.6 + 0.55 * num_experts), 1.3 + 0.34 * num_layers)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    _draw_load(figure, [axes], [load_LE])
    axes.set(xlabel="expert", ylabel="block", xticks=range(num_experts), yticks=range(num_layers))
    axes.set_yticklabels([str(layer) for layer in layers])
    if num_experts > MAX_ANNOTATED_EXPERTS:
        axes.set_xticks(range(0, num_experts, math.ceil(num_experts / 16)))
        return svg_text(figure)
    for layer, expert in np.ndindex(load_LE.shape):
        load = load_LE[layer, expert]
        is_dark = load > 0.7 * MAX_LOAD_COLOR or load < 0.2
        color = "white" if is_dark else INK
        axes.text(expert, layer, f"{load:.2f}", ha="center", va="center", fontsize=7, color=color)
    return svg_text(figure)


def plot_load_by_time(load_TLE: np.ndarray, layers: Sequence[int], times: Sequence[float]) -> str:
    """The same over the times of the network's calls, a panel a layer; of many layers, some at even
    distances."""
    shown = spread_places(len(layers), MAX_LAYER_PANELS)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(11, 0.7 + 1.9 * rows), layout="constrained")
    all_axes = [figure.add_subplot(rows, columns, index + 1) for index in range(len(shown))]
    _draw_load(figure, all_axes, [load_TLE[:, layer].T for layer in shown])
    ticks = spread_places(len(times), 5)
    for index, (axes, layer) in enumerate(zip(all_axes, shown, strict=True)):
        axes.set_title(f"block {layers[layer]}", fontsize=9)
        axes.set(xticks=ticks, xticklabels=[f"{times[tick]:.2f}" for tick in ticks])
        axes.set_xlabel("t" if index + columns >= len(shown) else "")
        axes.set_ylabel("expert" if index % columns == 0 else "")
    return svg_text(figure)


def plot_capacity(load_TLE: np.ndarray, layers: Sequence[int], times: Sequence[float]) -> str:
    """Average experts a token gets over the times of the calls: the mean, and each layer faintly."""
    figure = Figure(figsize=(11, 3.0), layout="constrained")
    axes = figure.add_subplot()
    by_layer_TL = load_TLE.mean(2)
    shades = colormaps["viridis"](np.linspace(0.1, 0.85, len(layers)))
    for layer, shade, capacity_T in zip(layers, shades, by_layer_TL.T, strict=True):
        label = f"block {layer}" if len(layers) <= MAX_LAYER_PANELS else None
        axes.plot(times, capacity_T, color=shade, linewidth=1, alpha=0.6, label=label)
    axes.plot(times, by_layer_TL.mean(1), color=INK, linewidth=2.2, marker="o", markersize=3, label="mean")
    axes.axhline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="t (1 = noise, 0 = data; sampling runs from left to right)", ylabel="capacity")
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, ncols=5)
    return svg_text(figure)


def plot_histograms(panels: Mapping[str, Sequence[float]]) -> str:
    """A panel for each title, with the numbers below it; panels without numbers are left out."""
    shown = {title: np.asarray(numbers) for title, numbers in panels.items() if len(numbers)}
    columns = min(3, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(3.7 * columns, 2.6 * rows), layout="constrained")
    for place, (title, numbers) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.hist(numbers, bins=min(40, max(1, len(np.unique(numbers)))), color=COLORS[0])
        style_axes(axes)
        axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    return svg_text(figure)


def spread_places(count: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 to `count` - 1, evenly spread."""
    places: np.ndarray = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    return places


def _draw_panel(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        shown = spread_places(len(curve.steps), MAX_POINTS)
        steps, values = curve.steps[shown], curve.values[shown]
        style = {"color": curve.paint, "linewidth": 1.6, "label": curve.label}
        if not curve.is_noisy:
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    steps, curve.low[shown], curve.high[shown], color=curve.paint, alpha=0.14, linewidth=0
                )
            axes.plot(steps, values, marker="o" if len(shown) <= 60 else None, markersize=3, **style)
            continue
        if len(curves) <= 2:
            axes.plot(steps, values, color=curve.paint, linewidth=0.7, alpha=0.25)
        axes.plot(steps, _running_mean(curve.values)[shown], **style)
    values = np.concatenate([curve.values for curve in curves])
    _limit_spikes(axes, values)
    _widen_if_flat(axes, values)
    style_axes(axes)
    axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel("step")
    if any(curve.label for curve in curves) and len(curves) <= 10:
        axes.legend(frameon=False, fontsize=7 if len(curves) > 3 else 8, ncols=2 if len(curves) > 5 else 1)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the neighbouring 1/50 of the lines, on both sides so that it does not lag, over gaps."""
    reach = max(2, len(values) // 100)
    is_known = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(is_known, values, 0.0), is_known)
    )
    first = np.clip(np.arange(len(values)) - reach, 0, None)
    last = np.clip(np.arange(len(values)) + reach + 1, None, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _limit_spikes(axes: Axes, values: np.ndarray) -> None:
    """Let the first steps and single spikes leave the frame, if they would flatten the rest."""
    low, high = np.nanmin(values), np.nanpercentile(values, 98)
    if len(values) > 50 and high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _widen_if_flat(axes: Axes, values: np.ndarray) -> None:
    """A value that does not move is a line in the middle: not its last digits, blown up."""
    low, high = np.nanmin(values), np.nanmax(values)
    size = max(abs(low), abs(high))
    if 0 < size < np.inf and high - low <= 1e-3 * size:
        axes.set_ylim(low - 0.1 * size, high + 0.1 * size)


def _draw_load(figure: Figure, all_axes: Sequence[Axes], loads: Sequence[np.ndarray]) -> None:
    largest = max(float(load.max()) for load in loads)
    norm = TwoSlopeNorm(1.0, 0.0, min(max(2.0, largest), MAX_LOAD_COLOR))
    for axes, load in zip(all_axes, loads, strict=True):
        image = axes.imshow(load, norm=norm, cmap=LOAD_COLORS, aspect="auto", interpolation="nearest")
        axes.tick_params(labelsize=8, color=GRAY)
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
        for spine in axes.spines.values():
            spine.set_visible(False)
    extend = "max" if largest > MAX_LOAD_COLOR else "neither"
    bar = figure.colorbar(image, ax=list(all_axes), extend=extend, pad=0.015, aspect=18)
    bar.set_label("load (1 = fair share)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]  # a Spine, whatever matplotlib's stubs say


def style_axes(axes: Axes) -> None:
    """Grid, small labels, no frame above and on the right."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=GRAY)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8c0c8")


def svg_text(figure: Figure) -> str:
    """The figure as SVG, the same text whenever it is made."""
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=150, metadata={"Date": None})
    return text.getvalue()
