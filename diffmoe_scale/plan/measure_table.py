"""Many layouts of a config, planned and measured: the table of docs/planning.md."""

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffmoe_scale.config.schema import Config
from diffmoe_scale.files import replace_file
from diffmoe_scale.plan.measure import Measured
from diffmoe_scale.plan.measure_ranks import compare
from diffmoe_scale.plan.memory import Memory
from diffmoe_scale.plan.search import CHECKPOINTING, Layout, apply_layout, divisors
from diffmoe_scale.plan.text import table


@dataclass(frozen=True)
class Row:
    """A layout of a network, planned and measured."""

    network: str
    precision: str
    capacity: float
    layout: Layout
    planned: Memory
    measured: Measured

    @property
    def error(self) -> float:
        """Of the planned bytes against the measured ones."""
        return self.planned.total / self.measured.peak - 1


def networks_of(config: Config) -> dict[str, Config]:
    """The config's own network, and another with what large models have: joint attention (in text mode),
    RoPE, QK-norm, shared modulation, narrow SwiGLU experts and a shared one in every block."""
    is_text = config.model.conditioning == "text"
    model = replace(
        config.model,
        attention="joint" if is_text else "cross",
        text_projection=is_text,
        qk_norm="rms",
        positions="rope2d",
        modulation="shared",
    )
    moe = replace(
        config.moe, num_experts=8, every=1, expert_width_ratio=1.0, shared_experts=1, activation="swiglu"
    )
    return {"of the config": config, "with joint attention": replace(config, model=model, moe=moe)}


def cases(config: Config, *, ranks: int, expert_parallel: int) -> Iterator[tuple[str, Config]]:
    """Every network with every format, stage and checkpointing; capacity 1 and 2 by turns."""
    choices = itertools.product(networks_of(config).items(), ("fp32", "bf16"), (1, 2), CHECKPOINTING)
    for number, ((name, network), precision, stage, checkpointing) in enumerate(choices):
        layout = Layout(expert_parallel, stage, config.run.micro_batch, checkpointing)
        laid = apply_layout(network, layout)
        yield (
            name,
            replace(
                laid,
                model=replace(laid.model, precision=precision),  # type: ignore[arg-type]  # one of the two
                moe=replace(laid.moe, capacity=float(1 + (number + stage + expert_parallel) % 2)),
            ),
        )


def measure_table(config: Config, *, ranks: int) -> list[Row]:
    """Every case with every expert_parallel that divides the ranks and the experts."""
    rows = []
    for expert_parallel in divisors(ranks, config.moe.num_experts):
        if config.moe.num_experts % expert_parallel == 0:
            named = list(cases(config, ranks=ranks, expert_parallel=expert_parallel))
            pairs = compare([laid for _, laid in named], ranks=ranks)
            for (name, laid), (planned, measured) in zip(named, pairs, strict=True):
                layout = Layout(
                    expert_parallel,
                    laid.parallel.zero_stage,
                    laid.run.micro_batch,
                    laid.model.activation_checkpointing,
                )
                precision, capacity = laid.model.precision, laid.moe.capacity
                rows.append(Row(name, precision, capacity, layout, planned, measured))
    return rows


def describe_rows(rows: Sequence[Row]) -> list[str]:
    """A line for each, and the errors of all."""
    cells = [("network", "format", "capacity", "layout", "planned (MB)", "measured (MB)", "error")]
    cells += [
        (
            row.network,
            row.precision,
            f"{row.capacity:g}",
            str(row.layout),
            f"{row.planned.total / 1e6:.2f}",
            f"{row.measured.peak / 1e6:.2f}",
            f"{100 * row.error:+.2f} %",
        )
        for row in rows
    ]
    sizes = [abs(row.error) for row in rows]
    mean, worst, lowest = statistics.mean(sizes), max(sizes), min(row.error for row in rows)
    summary = f"{len(rows)} layouts: mean error {100 * mean:.2f} %, worst {100 * worst:.2f} %, lowest "
    summary += f"{100 * lowest:+.2f} %"
    return [*table(cells), summary]


def write_rows(path: Path, rows: Sequence[Row], *, ranks: int) -> None:
    """As JSON: bytes."""
    tree = {
        "ranks": ranks,
        "layouts": [
            {**asdict(row), "planned_total": row.planned.total, "peak": row.measured.peak, "error": row.error}
            for row in rows
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(tree, indent=1) + "\n").encode())
