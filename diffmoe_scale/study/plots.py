"""Curves over training: the mean over seeds, with a band from the lowest to the highest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from diffmoe_scale.report.plots import COLORS, INK, style_axes, svg_text

LINES = ("-", (0, (5, 2)), (0, (1, 1.2)))


@dataclass(frozen=True)
class Band:
    """A variant: values by step, a list over seeds."""

    label: str
    values: Mapping[int, Sequence[float]]


def plot_bands(bands: Sequence[Band], *, title: str, is_logarithmic: bool = False) -> str:
    """One panel as SVG text; steps that only some seeds have are drawn of these."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for place, band in enumerate(band for band in bands if band.values):
        steps = sorted(band.values)
        columns = [band.values[step] for step in steps]
        color = COLORS[place % len(COLORS)]
        means = [float(np.mean(column)) for column in columns]
        line = LINES[place // len(COLORS) % len(LINES)]
        axes.plot(
            steps,
            means,
            color=color,
            linestyle=line,
            linewidth=1.7,
            marker="o",
            markersize=3,
            label=band.label,
        )
        low, high = ([limit(column) for column in columns] for limit in (min, max))
        axes.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)
    if is_logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    style_axes(axes)
    axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axes.legend(frameon=False, fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg_text(figure)
