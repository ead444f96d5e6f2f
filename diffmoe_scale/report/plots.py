"""Figures of a run as SVG text, and grids of its pictures as PNG. Matplotlib's only door.

T sampling steps, L MoE layers, E experts. Figures are made without pyplot: no display, no global state.
"""

import functools
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # values of metrics.jsonl

import numpy as np
import torch
from matplotlib import colormaps, get_data_path
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from diffmoe_scale.files import replace_file

INK, GRAY, GRID, GOOD, BAD = "#1f2933", "#616e7c", "#e4e7eb", "#0b7a5b", "#c92a2a"
COLORS = ("#2563eb", "#d9480f", "#0b7a5b", "#9c36b5", "#b08900", "#0c8599", "#c2255c", "#5c5f66")
LOAD_COLORS = "RdBu_r"
PANEL_COLUMNS = 2
MAX_POINTS = 1500
MAX_ANNOTATED_EXPERTS = 16
MAX_LAYER_PANELS = 8
# Loads beyond this share one colour: a hot expert must not wash out the differences between the others.
MAX_LOAD_COLOR = 4.0

MIN_CELL = 128
CAPTION_SIZE = 13
CAPTION_LINES = 3
MARGIN = 10


@dataclass(frozen=True)
class Curve:
    """One line of a panel; a noisy one is drawn faint, with its running mean."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    color: Any
    is_noisy: bool = True


def plot_training(records: Sequence[Mapping[str, Any]]) -> str:
    """Loss, validation, router losses, gradient norm, learning rate, speed, loss by time and thresholds;
    panels without data are left out."""
    panels = {title: curves for title, curves in _training_panels(records).items() if curves}
    rows = max(1, math.ceil(len(panels) / PANEL_COLUMNS))
    figure = Figure(figsize=(11, 2.8 * rows), layout="constrained")
    for index, (title, curves) in enumerate(panels.items(), start=1):
        _draw_panel(figure.add_subplot(rows, PANEL_COLUMNS, index), title, curves)
    return _svg(figure)


def plot_load_by_layer(load_LE: np.ndarray, layers: Sequence[int]) -> str:
    """Tokens that each expert of each layer took, over a fair share."""
    num_layers, num_experts = load_LE.shape
    figure = Figure(
        figsize=(min(11, 2.6 + 0.55 * num_experts), 1.3 + 0.34 * num_layers), layout="constrained"
    )
    axes = figure.add_subplot()
    _draw_load(figure, [axes], [load_LE])
    axes.set(
        xlabel="expert",
        ylabel="block",
        xticks=range(num_experts),
        yticks=range(num_layers),
        yticklabels=[str(layer) for layer in layers],
    )
    if num_experts <= MAX_ANNOTATED_EXPERTS:
        for layer, expert in np.ndindex(load_LE.shape):
            is_dark = load_LE[layer, expert] > 0.7 * MAX_LOAD_COLOR or load_LE[layer, expert] < 0.2
            axes.text(
                expert,
                layer,
                f"{load_LE[layer, expert]:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if is_dark else INK,
            )
    else:
        axes.set_xticks(range(0, num_experts, math.ceil(num_experts / 16)))
    return _svg(figure)


def plot_load_by_time(load_TLE: np.ndarray, layers: Sequence[int], times: Sequence[float]) -> str:
    """The same over the sampling steps, a panel a layer; of many layers, some at even distances."""
    shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), MAX_LAYER_PANELS)).round().astype(int))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(11, 0.7 + 1.9 * rows), layout="constrained")
    all_axes = [figure.add_subplot(rows, columns, index + 1) for index in range(len(shown))]
    _draw_load(figure, all_axes, [load_TLE[:, layer].T for layer in shown])
    ticks = np.unique(np.linspace(0, len(times) - 1, min(len(times), 5)).round().astype(int))
    for index, (axes, layer) in enumerate(zip(all_axes, shown, strict=True)):
        axes.set_title(f"block {layers[layer]}", fontsize=9)
        axes.set(xticks=ticks, xticklabels=[f"{times[tick]:.2f}" for tick in ticks])
        axes.set_xlabel("t" if index + columns >= len(shown) else "")
        axes.set_ylabel("expert" if index % columns == 0 else "")
    return _svg(figure)


def plot_capacity(load_TLE: np.ndarray, layers: Sequence[int], times: Sequence[float]) -> str:
    """Average experts a token gets over the sampling steps: the mean, and each layer faintly."""
    figure = Figure(figsize=(11, 3.0), layout="constrained")
    axes = figure.add_subplot()
    by_layer_TL = load_TLE.mean(2)
    shades = colormaps["viridis"](np.linspace(0.1, 0.85, len(layers)))
    for layer, shade, capacity_T in zip(layers, shades, by_layer_TL.T, strict=True):
        axes.plot(
            times,
            capacity_T,
            color=shade,
            linewidth=1,
            alpha=0.6,
            label=f"block {layer}" if len(layers) <= MAX_LAYER_PANELS else None,
        )
    axes.plot(times, by_layer_TL.mean(1), color=INK, linewidth=2.2, marker="o", markersize=3, label="mean")
    axes.axhline(1.0, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="t (1 = noise, 0 = data; sampling runs from left to right)", ylabel="capacity")
    _style(axes)
    axes.legend(frameon=False, fontsize=8, ncols=5)
    return _svg(figure)


def plot_histograms(panels: Mapping[str, Sequence[float]]) -> str:
    """A panel for each title, with the numbers below it; panels without numbers are left out."""
    shown = {title: np.asarray(numbers) for title, numbers in panels.items() if len(numbers)}
    columns = min(3, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(3.7 * columns, 2.6 * rows), layout="constrained")
    for place, (title, numbers) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.hist(numbers, bins=min(40, max(1, len(np.unique(numbers)))), color=COLORS[0])
        _style(axes)
        axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    return _svg(figure)


def save_image_grid(
    images_BCHW: torch.Tensor,
    captions: Sequence[str],
    path: Path,
    columns: int,
    passed: Sequence[bool] | None = None,
) -> None:
    """Write images in [-1, 1] with their captions below as one PNG; `passed` marks each as right or wrong.

    Small images are enlarged by a whole factor without interpolation. The file is replaced at once, never
    half written.
    """
    assert len(images_BCHW) == len(captions) > 0, f"{len(images_BCHW)} images with {len(captions)} captions"
    assert passed is None or len(passed) == len(captions), (
        f"{len(captions)} images with {len(passed or ())} marks"
    )
    pixels_BHWC = (
        ((images_BCHW.detach().float().nan_to_num().clamp(-1, 1) + 1) * 127.5)
        .round()
        .byte()
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )
    factor = max(1, math.ceil(MIN_CELL / pixels_BHWC.shape[2]))
    height, width = pixels_BHWC.shape[1] * factor, pixels_BHWC.shape[2] * factor
    columns = min(columns, len(captions))
    indent = 0 if passed is None else CAPTION_SIZE + 3
    texts = [_wrap(caption, width - indent) for caption in captions]
    line_height = round(1.3 * CAPTION_SIZE)
    text_heights = [
        line_height * max(len(text) for text in texts[first : first + columns]) + MARGIN // 2
        for first in range(0, len(texts), columns)
    ]
    tops = np.cumsum([MARGIN, *(height + text_height + MARGIN for text_height in text_heights)])
    canvas = Image.new("RGB", (MARGIN + columns * (width + MARGIN), int(tops[-1])), "white")
    draw = ImageDraw.Draw(canvas)
    for index, text in enumerate(texts):
        left, top = MARGIN + index % columns * (width + MARGIN), int(tops[index // columns])
        canvas.paste(
            Image.fromarray(pixels_BHWC[index]).resize((width, height), Image.Resampling.NEAREST), (left, top)
        )
        text_top, color = top + height + MARGIN // 2, INK
        if passed is not None:
            mark, color = ("\N{CHECK MARK}", GOOD) if passed[index] else ("\N{BALLOT X}", BAD)
            draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=color, width=2)
            draw.text((left, text_top), mark, fill=color, font=_font(mark))
        for number, line in enumerate(text):
            draw.text((left + indent, text_top + number * line_height), line, fill=color, font=_font(line))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    replace_file(path, buffer.getvalue())


def _training_panels(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    names = sorted({name for record in records for name in record})
    blocks = sorted(int(name.rpartition("/")[2]) for name in names if name.startswith("moe/threshold/"))
    deciles = [decile for decile in range(10) if f"loss/by_time/{decile}" in names]
    block_shades = colormaps["viridis"](np.linspace(0.1, 0.85, max(1, len(blocks))))
    decile_shades = colormaps["plasma"](np.linspace(0, 0.9, 10))
    router_losses = [name for name in names if name in ("loss/predictor", "loss/balance")]
    noisy_by_title = {
        "Gradient norm": "optimizer/gradient_norm",
        "Learning rate": "optimizer/learning_rate",
        "Images a second": "throughput/images_per_s",
    }
    return {
        "Diffusion loss": [
            *_curve(records, "loss/diffusion", "training", COLORS[0]),
            *_curve(records, "loss/validation", "validation", COLORS[1], is_noisy=False),
        ],
        "Router losses": [
            curve
            for name, color in zip(router_losses, COLORS[2:], strict=False)
            for curve in _curve(records, name, name.removeprefix("loss/"), color)
        ],
        **{
            title: _curve(records, name, "", COLORS[0], is_noisy=title != "Learning rate")
            for title, name in noisy_by_title.items()
        },
        "Diffusion loss by noise level (t)": [
            curve
            for decile in deciles
            for curve in _curve(
                records,
                f"loss/by_time/{decile}",
                f"{decile / 10:.1f} to {decile / 10 + 0.1:.1f}",
                decile_shades[decile],
            )
        ],
        "Dynamic threshold, mean over experts": [
            curve
            for block, shade in zip(blocks, block_shades, strict=False)
            for curve in _curve(records, f"moe/threshold/{block}", f"block {block}", shade, is_noisy=False)
        ],
    }


def _curve(
    records: Sequence[Mapping[str, Any]], name: str, label: str, color: Any, *, is_noisy: bool = True
) -> list[Curve]:
    """The curve of a metric as a list of one, or of none if it was never logged with a finite value."""
    points = [
        (record["step"], float(np.mean(record[name]))) for record in records if record.get(name) is not None
    ]
    if not any(math.isfinite(value) for _, value in points):
        return []
    steps, values = np.array(points).T
    return [
        Curve(
            label=label,
            steps=steps,
            values=np.where(np.isfinite(values), values, np.nan),
            color=color,
            is_noisy=is_noisy,
        )
    ]


def _draw_panel(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        shown = np.unique(
            np.linspace(0, len(curve.steps) - 1, min(len(curve.steps), MAX_POINTS)).round().astype(int)
        )
        steps = curve.steps[shown]
        if not curve.is_noisy:
            marker = "o" if len(shown) <= 60 else None
            axes.plot(
                steps,
                curve.values[shown],
                color=curve.color,
                linewidth=1.6,
                marker=marker,
                markersize=3,
                label=curve.label,
            )
            continue
        if len(curves) <= 2:
            axes.plot(steps, curve.values[shown], color=curve.color, linewidth=0.7, alpha=0.25)
        axes.plot(
            steps, _running_mean(curve.values)[shown], color=curve.color, linewidth=1.6, label=curve.label
        )
    _limit_spikes(axes, np.concatenate([curve.values for curve in curves]))
    _style(axes)
    axes.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel("step")
    if any(curve.label for curve in curves) and len(curves) <= 10:
        axes.legend(frameon=False, fontsize=7 if len(curves) > 3 else 8, ncols=2 if len(curves) > 5 else 1)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the neighbouring 1/50 of the lines, on both sides so that it does not lag; gaps are bridged."""
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
    bar = figure.colorbar(
        image,
        ax=list(all_axes),
        extend="max" if largest > MAX_LOAD_COLOR else "neither",
        pad=0.015,
        aspect=18,
    )
    bar.set_label("load (1 = fair share)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]  # a Spine, whatever matplotlib's stubs say


def _style(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=GRAY)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8c0c8")


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=150, metadata={"Date": None})
    return text.getvalue()


def _wrap(text: str, width: int) -> list[str]:
    """Lines that fit into `width` pixels, the last one ending in an ellipsis if there would be too many."""
    text = " ".join(text.split())
    # Scripts without spaces have wide letters, so the mean width of this text decides.
    letter_width = _font(text).getlength(text) / max(1, len(text))
    wrapped = textwrap.wrap(
        text,
        max(4, int(width / max(1.0, letter_width * 1.05))),
        max_lines=CAPTION_LINES,
        placeholder=" \N{HORIZONTAL ELLIPSIS}",
    )
    return wrapped or [""]


def _font(text: str) -> ImageFont.FreeTypeFont:
    letters = frozenset(ord(letter) for letter in text if not letter.isspace())
    return _load_font(_font_file(letters))


@functools.cache
def _load_font(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, CAPTION_SIZE)


@functools.lru_cache(maxsize=4096)
def _font_file(letters: frozenset[int]) -> str:
    """Matplotlib's own DejaVu Sans, or the first font of this machine that has all letters where DejaVu lacks
    some."""
    default = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    files = [default, *(entry.fname for entry in fontManager.ttflist)]
    return next((file for file in files if letters <= _letters_of(file)), default)


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())
