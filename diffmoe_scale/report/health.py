"""The report's section of expert health: what training logs of the experts' decisions.

L MoE layers, E experts.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffmoe_scale.json_text import parse_json
from diffmoe_scale.report.health_plots import plot_bars, plot_calibration, plot_together
from diffmoe_scale.report.html import Markup, element, figure, join, table
from diffmoe_scale.report.plots import Curve, plot_curves
from diffmoe_scale.report.training import Record, by_block, finite

PANELS = {
    "dead": "Dead experts",
    "greedy": "Greedy experts",
    "effective_experts": "Effective experts, by load",
    "effective_experts_soft": "Effective experts, by score",
    "uncovered": "Tokens that no expert takes",
    "overlap": "Overlap of two experts' tokens",
    "similarity": "Largest cosine of two experts' router weights",
    "predictor_accuracy": "Decisions that the rule of inference gets right",
    "deployed_capacity": "Capacity by the rule of inference",
}
EXPLANATION = (
    "From the training decisions of the logged steps, by block. The rule of inference is the predictor over "
    "its dynamic threshold. Dead and greedy experts are those beyond "
    "alarms.min_load and alarms.max_load. Alarms stand under Troubles."
)
MAX_BYTES = 64 * 2**20


def health_section(records: Sequence[Record], together: Mapping[int, np.ndarray] | None) -> Markup:
    """`together` is `read_together`'s, if there is any. Nothing for a run that did not log it: a
    dense model, or one of an older version."""
    observed = [record for record in records if isinstance(record.get("moe/health/overlap"), list)]
    blocks = sorted(by_block(observed[-1], "load")) if observed else []
    if not blocks:
        return Markup("")
    last = observed[-1]
    curves = {title: _curves(observed, figure, blocks) for figure, title in PANELS.items()}
    parts = [
        element("h2", "Expert health"),
        element("p", EXPLANATION),
        figure(plot_curves(curves).encode(), kind="svg", caption="By optimizer step, a line a block."),
        table(_rows(last, blocks), header=["block", *PANELS.values()], numbers=range(1, len(PANELS) + 1)),
    ]
    parts += [
        figure(
            plot_bars(_capacities(last)).encode(),
            kind="svg",
            caption=_capacity_caption(last),
        )
    ]
    calibration = _by_tenth(last, "calibration")
    if any(map(math.isfinite, calibration)):
        caption = (
            "Predicted and taken: of the decisions to which the predictor gives a probability, the share "
            "that the experts take. On the line it is right about itself."
        )
        parts.append(figure(plot_calibration(calibration).encode(), kind="svg", caption=caption))
    if together:
        caption = (
            "Of the tokens of the expert in a row, the share that the expert in a column takes too. Blocks "
            "that are dark beside the diagonal hold experts that are one."
        )
        parts.append(figure(plot_together(together).encode(), kind="svg", caption=caption))
    return join(parts)


def _curves(records: Sequence[Record], name: str, blocks: Sequence[int]) -> list[Curve]:
    shades = np.linspace(0.1, 0.85, max(1, len(blocks)))
    curves = []
    for place, (block, shade) in enumerate(zip(blocks, shades, strict=True)):
        points = [
            (record["step"], values[place])
            for record in records
            if len(values := _numbers(record, name)) == len(blocks)
        ]
        if any(math.isfinite(value) for _, value in points):
            steps, values_S = np.array(points).T
            curve = Curve(f"block {block}", steps, values_S, shade=float(shade), is_noisy=False)
            curves.append(curve)
    return curves


def _rows(record: Record, blocks: Sequence[int]) -> list[tuple[str, ...]]:
    columns = [_numbers(record, name) for name in PANELS]
    return [
        (str(block), *(f"{column[place]:.3g}" if place < len(column) else "" for column in columns))
        for place, block in enumerate(blocks)
    ]


def _numbers(record: Record, name: str) -> list[float]:
    value = record.get(f"moe/health/{name}")
    return value if isinstance(value, list) else []


def _by_tenth(record: Record, name: str) -> list[float]:
    """NaN where nothing was logged."""
    return [finite(record, f"moe/health/{name}/{tenth}", math.nan) for tenth in range(10)]


def _capacities(record: Record) -> dict[str, list[float]]:
    """By tenth of the time axis: in training and, where it was logged, by the rule of inference."""
    found = {"in training": _by_tenth(record, "capacity_by_time")}
    deployed = _by_tenth(record, "deployed_by_time")
    is_known = any(map(math.isfinite, deployed))
    return found | {"by the rule of inference": deployed} if is_known else found


def _capacity_caption(record: Record) -> str:
    halves = [
        f"{record[f'moe/health/capacity_{half}']:.3f} {words}"
        for half, words in (("conditional", "with a condition"), ("unconditional", "without"))
        if isinstance(record.get(f"moe/health/capacity_{half}"), float)
    ]
    caption = (
        f"Capacity by tenth of the time axis in training, at step {record['step']:,} (0 = data, 1 = noise)"
    )
    return f"{caption}; {', '.join(halves)}." if halves else f"{caption}."


def read_together(path: Path) -> Mapping[int, np.ndarray]:
    """RUN/experts.json: by block [E, E], the share of the row's tokens that the column's expert takes; {}
    without the file. Raises ValueError, KeyError or TypeError if it is damaged."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    shares: dict[int, np.ndarray] = {}
    for block, entry in parse_json(path.read_bytes())["blocks"].items():
        flat = np.array(entry["together"], dtype=float)
        size = math.isqrt(flat.size)
        together_EE = flat.reshape(size, size)
        shares[int(block)] = together_EE / np.maximum(together_EE.diagonal(), 1e-12)[:, None]
    return shares
