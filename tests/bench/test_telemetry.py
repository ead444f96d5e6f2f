import time
from pathlib import Path
from typing import Any  # rows of a table

import pytest
import torch

from diffmoe_scale.bench.telemetry import FIGURES, HEALTH, PARTS, PartClock, bench_telemetry
from tests.ranks import run_alone
from tests.train.runs import TINY, text_settings


def test_a_second_counts_for_the_innermost_part() -> None:
    clock = PartClock(torch.device("cpu"))
    with clock(FIGURES):
        time.sleep(0.02)
        with clock(HEALTH):
            time.sleep(0.05)
    time.sleep(0.02)
    assert clock.seconds[HEALTH] == pytest.approx(0.05, abs=0.02)
    assert 0.02 <= clock.seconds[FIGURES] < 0.04
    assert clock.seconds.keys() == set(PARTS)


def measure(settings: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, about, _ = bench_telemetry(None, settings, steps=2)
    return rows, about


def test_every_part_is_timed_within_the_steps(tmp_path: Path) -> None:
    rows, about = run_alone(measure, [*TINY, *text_settings(tmp_path)])
    assert [row["part"] for row in rows] == [*PARTS, "all"] and about["steps"] == 2
    assert all(row["ms_a_step"] > 0 for row in rows)
    *parts, whole = [row["ms_a_step"] for row in rows]
    assert sum(parts) == pytest.approx(whole)
    # What is not telemetry is the rest of the steps, whose quartiles are told.
    rest_ms = 100 * whole / about["percent"]
    assert 0 < rest_ms < 2 * about["step_ms"]["q3"]
