"""The sweep of capacities as a section of the report, and as text."""

import logging
from collections.abc import Sequence

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.sweep_results import Point, Sweep, read_sweep
from diffmoe_scale.plan.picture import format_flops
from diffmoe_scale.report.capacity_plots import (
    metrics_of,
    plot_by_time,
    plot_kinds,
    plot_layers,
    plot_sweep,
    shown_point,
)
from diffmoe_scale.report.html import Markup, element, figure, join, table

logger = logging.getLogger(__name__)

EXPLANATION = (
    "The same weights at several capacities: thresholds were calibrated on other prompts (gamma: one for "
    "all; quantile: one for each layer and expert). Score is the share of pictures in which a strict checker "
    "finds everything the caption asks for. Wall time is that of whole pictures, all points in turns."
)


def newest_sweep(directory: RunDirectory) -> Sweep | None:
    """The one that was written last; damaged ones are left out, and said."""
    if not directory.sweeps.is_dir():
        return None
    paths = sorted(directory.sweeps.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in paths:
        try:
            sweep = read_sweep(path)
        except ValueError as error:
            logger.warning("%s is left out of the report: %s", path.name, error)
            continue
        if sweep.points:
            return sweep
    return None


def capacity_section(sweep: Sweep | None) -> Markup:
    """Table and figures; nothing without a sweep."""
    if sweep is None:
        return Markup("")
    points, shown = sweep.points, shown_point(sweep.points)
    header = header_of(points)
    figures = [
        (plot_sweep(points), "Against the measured capacity; the dashed line is a dense network's work."),
        (plot_by_time(points), "Capacity over the times of the calls, from noise to data."),
        (plot_layers(points), "Capacity of each block with experts, the mean over calls."),
        (plot_kinds(shown.profile), f"Capacity by kind of prompt or class, of the point {shown.name}."),
    ]
    extremes = [
        (f"{most[0]} ({most[1]:.2f})", f"{least[0]} ({least[1]:.2f})")
        for most, least in zip(shown.profile.most, shown.profile.least, strict=False)
    ]
    origin = f"Step {sweep.step:,} ({sweep.checkpoint}), weights {sweep.weights}"
    if sweep.timed_batch:
        origin += f"; times of {sweep.timed_batch} pictures at once on {sweep.device}"
    return join(
        [
            element("h2", "Capacity"),
            element("p", EXPLANATION),
            table(rows_of(points), header=header, numbers=range(1, len(header))),
            element("p", f"{origin}.", kind="note"),
            *(figure(svg.encode(), kind="svg", caption=caption) for svg, caption in figures),
            element("p", f"Prompts whose pictures took most and least experts, of the point {shown.name}:"),
            table(extremes, header=("most", "least")),
        ]
    )


def format_sweep(sweep: Sweep) -> str:
    """The table for the terminal."""
    lines = [header_of(sweep.points), *rows_of(sweep.points)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def header_of(points: Sequence[Point]) -> tuple[str, ...]:
    cost = ("ms a picture", "over capacity 1", "operations a picture", "calls")
    return ("point", "capacity", "score", *metrics_of(points), *cost)


def rows_of(points: Sequence[Point]) -> list[tuple[str, ...]]:
    timed = [point for point in points if point.ms]
    base = min(timed, key=lambda point: abs(point.capacity - 1)).ms["median"] if timed else 1.0
    return [
        (
            point.name,
            f"{point.capacity:.3f}",
            "" if point.score is None else f"{point.score:.3f} +/- {point.error or 0:.3f}",
            *(f"{point.metrics[name]:.4g}" if name in point.metrics else "" for name in metrics_of(points)),
            f"{point.ms['median']:.1f}" if point.ms else "",
            f"{point.ms['median'] / base:.2f}" if point.ms else "",
            format_flops(point.flops),
            f"{point.calls:.4g}",
        )
        for point in points
    ]
