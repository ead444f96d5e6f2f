"""`python tools/compare_runs.py RUN_A RUN_B [--tolerance R]`: where two metrics files differ. Exit code 0
equal, 1 different, 2 wrong use."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.config.check import require
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.words import counted

# What the clock and the machine decide.
IGNORED = ("time", "throughput/", "memory/")
MISSING = math.inf

Lines = dict[int, dict[str, Any]]


@dataclass
class Difference:
    """Of one metric over all steps; `first` is the first step that exceeds the tolerance, 0 if none does."""

    absolute: float = 0.0
    relative: float = 0.0
    first: int = 0

    def add(self, step: int, a: Any, b: Any, *, tolerance: float) -> None:
        absolute, relative = distance(a, b)
        self.absolute, self.relative = max(self.absolute, absolute), max(self.relative, relative)
        if relative > tolerance and not self.first:
            self.first = step


def distance(a: Any, b: Any) -> tuple[float, float]:
    """The largest absolute and relative difference of two numbers, or of two lists by element; infinite where
    they cannot be compared.

    Equal values differ by 0, NaN from NaN too; relative is to the larger of the two.
    """
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [distance(x, y) for x, y in zip(a, b, strict=True)]
        return max((absolute for absolute, _ in pairs), default=0.0), max(
            (relative for _, relative in pairs), default=0.0
        )
    if a == b:
        return 0.0, 0.0
    if not (_is_finite(a) and _is_finite(b)):
        is_same = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
        return (0.0, 0.0) if is_same else (MISSING, MISSING)
    return abs(a - b), abs(a - b) / max(abs(a), abs(b))


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def read_lines(run: Path) -> Lines:
    """The lines of a run directory, or of a metrics file, by step.

    Raises: ValueError if there are none.
    """
    path = run / "metrics.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; expected a run directory with metrics.jsonl, or such a file"
        )
    lines = {
        record["step"]: {name: value for name, value in record.items() if not name.startswith(IGNORED)}
        for record in read_metrics(path)
    }
    if not lines:
        raise ValueError(f"{path} has no line of a step; wait for the run's first log step")
    return lines


def compare(a: Lines, b: Lines, *, tolerance: float) -> dict[str, Difference]:
    """Differences by metric over the steps that both have; a metric that only one has is infinitely far."""
    found: dict[str, Difference] = {}
    for step in sorted(a.keys() & b.keys()):
        for name in sorted(a[step].keys() | b[step].keys()):
            found.setdefault(name, Difference()).add(
                step, a[step].get(name), b[step].get(name), tolerance=tolerance
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "compare_runs",
        "Compare two runs' metrics, but for timing, throughput and memory. "
        "Exit code 0: equal, 1: different, 2: wrong use.",
    )
    parser.add_argument("runs", type=user_path, nargs=2, metavar="RUN", help="run directory or metrics.jsonl")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="relative difference that is still equal (default: 0, to the bit)",
    )
    return run_command(parser, work, arguments)


def work(parsed: argparse.Namespace) -> int:
    require(0 <= parsed.tolerance < math.inf, "--tolerance", parsed.tolerance, "0 or more")
    a, b = (read_lines(run) for run in parsed.runs)
    differences = compare(a, b, tolerance=parsed.tolerance)
    for name, difference in sorted(differences.items()):
        if difference.absolute > 0:
            place = f"from step {difference.first}" if difference.first else "within the tolerance"
            print(f"{name}: {difference.absolute:.3g} absolute, {difference.relative:.3g} relative, {place}")
    lone = sorted(a.keys() ^ b.keys())
    if lone:
        print(f"in one of the runs only: {counted(len(lone), 'step')}, the first is {lone[0]}")
    firsts = [difference.first for difference in differences.values() if difference.first] + lone[:1]
    if firsts:
        print(f"the runs differ from step {min(firsts)} on")
        return 1
    print(
        f"the runs are equal over {counted(len(a), 'step')}"
        + (f" within {parsed.tolerance}" if parsed.tolerance else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
