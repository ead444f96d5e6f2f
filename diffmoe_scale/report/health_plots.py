"""Figures of expert health as SVG text. E experts."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from diffmoe_scale.report.plots import COLORS, GRAY, spread_places, style_axes, svg_text

MAX_BLOCKS = 8
BLOCKS_A_ROW = 4


def plot_bars(by_label: Mapping[str, Sequence[float]]) -> str:
    """Capacity by tenth of the time axis, a bar for each label; NaN has none."""
    figure = Figure(figsize=(5.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.085 / len(by_label)
    for place, (label, by_tenth) in enumerate(by_label.items()):
        middle = (np.arange(len(by_tenth)) + 0.5) / 10 + width * (place - (len(by_label) - 1) / 2)
        axes.bar(middle, by_tenth, width=width, color=COLORS[place], label=label)
    axes.axhline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="t", ylabel="capacity", xlim=(0, 1))
    style_axes(axes)
    if len(by_label) > 1:
        # Above the axes: bars can be of any height.
        figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside upper left")
    return svg_text(figure)


def plot_calibration(taken: Sequence[float]) -> str:
    """Share that was taken, by tenth of the predicted probability."""
    figure = Figure(figsize=(3.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot((np.arange(len(taken)) + 0.5) / len(taken), taken, color=COLORS[0], marker="o", markersize=4)
    axes.set(xlabel="predicted probability", ylabel="share taken", xlim=(0, 1), ylim=(0, 1))
    style_axes(axes)
    return svg_text(figure)


def plot_together(by_block: Mapping[int, np.ndarray]) -> str:
    """A heat map [E, E] of shares in 0 to 1 for each block, of at most MAX_BLOCKS evenly spread ones."""
    blocks = list(by_block)
    shown = [blocks[place] for place in spread_places(len(blocks), MAX_BLOCKS)]
    columns = min(BLOCKS_A_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.6 * rows), layout="constrained")
    all_axes = [figure.add_subplot(rows, columns, place + 1) for place in range(len(shown))]
    for axes, block in zip(all_axes, shown, strict=True):
        image = axes.imshow(by_block[block], vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.set_title(f"block {block}", fontsize=9, loc="left")
        places = spread_places(len(by_block[block]), MAX_BLOCKS)
        axes.set(xticks=places, yticks=places)
        axes.tick_params(labelsize=7, color=GRAY)
    figure.colorbar(image, ax=all_axes, pad=0.015, aspect=18).ax.tick_params(labelsize=8)
    return svg_text(figure)
