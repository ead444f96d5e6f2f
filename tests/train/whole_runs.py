"""Whole runs on ranks, one after another, and the lines of their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import numpy as np

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.ranks import run_on_ranks
from tests.train.runs import tiny_config

SETTINGS = [
    "moe.router_init_std=1.0",
    "optimizer.warmup_steps=4",
    "optimizer.ema_decay=0.5",
    "checkpoint.every=4",
]
Lines = dict[int, dict[str, Any]]
# Sums over ranks in another order, over 20 steps.
ROUND_OFF = 2e-6


def train_in_turn(context: ParallelContext, runs: Sequence[Sequence[str]]) -> list[str]:
    """One run after another; "" or what stopped it."""
    answers = []
    for settings in runs:
        layout = [
            f"parallel.expert_parallel={context.expert_parallel}",
            f"parallel.sequence_parallel={context.sequence_parallel}",
        ]
        config = tiny_config([*settings, *layout])
        try:
            train(config, context, RunDirectory(Path(config.run.directory)))
            answers.append("")
        except (ValueError, RuntimeError) as error:
            answers.append(str(error))
    return answers


def train_runs(layout: tuple[int, int], *runs: Sequence[str], sequence_parallel: int = 1) -> None:
    world_size, expert_parallel = layout
    for answer in run_on_ranks(
        train_in_turn,
        world_size,
        runs,
        expert_parallel=expert_parallel,
        sequence_parallel=sequence_parallel,
    ):
        assert answer == [""] * len(runs), answer


def read_lines(folder: Path) -> Lines:
    """The lines by step, without what the clock and the machine decide."""
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl")}
    return {
        step: {
            name: value
            for name, value in line.items()
            if not name.startswith(("time", "throughput", "memory"))
        }
        for step, line in lines.items()
    }


def assert_near(
    got: Lines,
    expected: Lines,
    names: Sequence[str] = ("loss/diffusion", "loss/predictor", "optimizer/gradient_norm", "moe/threshold/1"),
) -> None:
    assert got.keys() == expected.keys()
    for name in names:
        values, wanted = ([line[name] for line in lines.values()] for lines in (got, expected))
        np.testing.assert_allclose(values, wanted, rtol=ROUND_OFF, err_msg=name)
