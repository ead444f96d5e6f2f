"""The lines of metrics.jsonl as curves, and the report's section of them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import numpy as np

from diffmoe_scale.report.html import Markup, element, figure, join, missing
from diffmoe_scale.report.plots import Curve, plot_curves, plot_load_by_layer
from diffmoe_scale.telemetry.metrics import read_metrics

Record = Mapping[str, Any]

MAX_NUMBER = 1e300
"""Larger ones are no measurements, and figures cannot show them."""
NUM_TIMES = 8
"""At which validation takes a loss: t = 1/8 to 8/8."""
METRIC = re.compile(r"metrics/([a-z0-9_]{1,40})")
VALIDATION_OF = re.compile(r"loss/validation_at/([a-z_]{1,40})")
BLOCK_OF = re.compile(r"moe/(threshold|load)/(\d{1,6})")


def read_records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl by step, holding numbers and lists of numbers alone; of a step that was
    trained again after a rollback the last line.

    What else a line holds is left out: a report is made of whatever a run left.
    """
    records: dict[int, Record] = {}
    for record in read_metrics(path):
        cleaned = {name: value for name, entry in record.items() if (value := _clean(entry)) is not None}
        step = cleaned.get("step")
        if not isinstance(step, float) or not 0 <= step < 2**53:
            continue
        cleaned["step"] = int(step)
        records[int(step)] = cleaned
    return [records[step] for step in sorted(records)]


def _clean(value: Any) -> float | list[float] | None:
    if isinstance(value, list):
        numbers = [_clean(element) for element in value]
        flat = [number for number in numbers if isinstance(number, float)]
        return flat if flat and len(flat) == len(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > MAX_NUMBER:  # an int may be too large to become a float
        return math.inf if value > 0 else -math.inf
    return float(value)


def finite(record: Record, name: str, default: float = 0.0) -> float:
    """A scalar of a line; `default` where it is missing or not finite."""
    value = record.get(name)
    return value if isinstance(value, float | int) and math.isfinite(value) else default


def training_section(records: Sequence[Record], train_command: str) -> Markup:
    title = element("h2", "Training")
    if not records:
        return join([title, missing("No metrics.jsonl yet. Training writes it:", train_command)])
    caption = "By optimizer step: values as logged (faint) and their running mean. Single spikes may be cut."
    return join([title, figure(plot_curves(curves_of(records)).encode(), kind="svg", caption=caption)])


def curves_of(records: Sequence[Record]) -> dict[str, list[Curve]]:
    """The curves of each panel, by title: losses, gradient norm, learning rate, speed, loss by time and
    thresholds."""
    names = {name for record in records for name in record}
    thresholds = by_block(names, "threshold")
    shades = np.linspace(0.1, 0.85, max(1, len(thresholds)))
    find = _finder(records)
    rules = sorted({match[1] for name in names if (match := VALIDATION_OF.fullmatch(name))}, reverse=True)
    return {
        "Diffusion loss": [
            *find("loss/diffusion", label="training"),
            *find("loss/validation", label="validation", color=1, is_noisy=False),
        ],
        "Router losses": [
            *find("loss/predictor", label="predictor", color=2),
            *find("loss/balance", label="balance", color=3),
        ],
        "Gradient norm": find("optimizer/gradient_norm"),
        "Learning rate": find("optimizer/learning_rate", is_noisy=False),
        "Images a second": find("throughput/images_per_s"),
        "Diffusion loss by noise level (t)": [
            curve
            for decile in range(10)
            for curve in find(
                f"loss/by_time/{decile}",
                label=f"{decile / 10:.1f} to {decile / 10 + 0.1:.1f}",
                shade=decile / 10,
            )
        ],
        "Validation at fixed times, mean by rule": [
            curve
            for color, rule in enumerate(rules)
            for curve in find(f"loss/validation_at/{rule}", label=rule, color=color, is_noisy=False)
        ],
        "Validation capacity by rule": [
            curve
            for color, rule in enumerate(rules)
            for curve in find(f"moe/validation_capacity/{rule}", label=rule, color=color, is_noisy=False)
        ],
        **{f"Validation by noise level (t), rule {rule}": _validation_by_time(find, rule) for rule in rules},
        **{
            f"{match[1]} of drawn pictures": find(name, is_noisy=False)
            for name in sorted(names)
            if (match := METRIC.fullmatch(name))
        },
        "Dynamic threshold, mean over experts": [
            curve
            for (block, name), shade in zip(thresholds.items(), shades, strict=False)
            for curve in find(name, label=f"block {block}", shade=float(shade), is_noisy=False)
        ],
    }


def _validation_by_time(find: Callable[..., list[Curve]], rule: str) -> list[Curve]:
    """A curve for each of the fixed times."""
    return [
        curve
        for number in range(1, NUM_TIMES + 1)
        for curve in find(
            f"loss/validation_at/{rule}/{number}",
            label=f"{number}/{NUM_TIMES}",
            shade=(number - 1) / NUM_TIMES,
            is_noisy=False,
        )
    ]


def _finder(records: Sequence[Record]) -> Callable[..., list[Curve]]:
    """(metric name, how to draw it) -> its curve as a list of one, or of none if it was never logged with a
    finite value."""

    def find(name: str, *, label: str = "", **style: Any) -> list[Curve]:  # style: the fields of Curve
        points = [(record["step"], float(np.mean(record[name]))) for record in records if name in record]
        if not any(math.isfinite(value) for _, value in points):
            return []
        steps, values = np.array(points).T
        values = np.where(np.isfinite(values), values, np.nan)
        return [Curve(label=label, steps=steps, values=values, **style)]

    return find


def training_load(records: Sequence[Record]) -> Markup:
    """The experts' load at the last logged step of training, which stands in for that of sampling."""
    for record in reversed(records):
        load_by_layer = {
            block: record[name]
            for block, name in by_block(record, "load").items()
            if isinstance(record[name], list)
        }
        if not load_by_layer:
            continue
        load_LE = np.array(_of_equal_length(list(load_by_layer.values())), dtype=float)
        if not np.isfinite(load_LE).all():
            continue
        svg = plot_load_by_layer(load_LE, list(load_by_layer))
        caption = f"Load of each expert by block in training, at step {record['step']:,}."
        return figure(svg.encode(), kind="svg", caption=caption)
    return Markup("")


def by_block(names: Mapping[str, Any] | set[str], kind: str) -> dict[int, str]:
    """The metrics moe/KIND/BLOCK among names, by block, in its order."""
    found = {
        int(match[2]): name for name in names if (match := BLOCK_OF.fullmatch(name)) and match[1] == kind
    }
    return dict(sorted(found.items()))


def _of_equal_length(rows: list[list[float]]) -> list[list[float]]:
    """Blocks may have other numbers of experts: missing ones have no load."""
    longest = max(len(row) for row in rows)
    return [row + [0.0] * (longest - len(row)) for row in rows]
