"""A run that is broken off and goes on shows the same numbers wherever it shows them."""

import json
import urllib.request
from pathlib import Path
from typing import Any  # what the packages read back is untyped

import numpy as np
import pytest
import wandb
from prometheus_client.parser import text_string_to_metric_families

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.code_version import code_version
from diffmoe_scale.telemetry.prometheus import PrometheusTracker, gauge_name, split_block
from tests.ports import free_port
from tests.ranks import run_on_ranks
from tests.telemetry.readers import read_tensorboard, read_wandb
from tests.train.reports import read_lines, report

STARTS = [(0, 3), (2, 4), (2, 5), (5, 7)]
"""The checkpoint that a start continues from, and its last step: 3 and 4 are trained more than once, and the
line of step 6 is begun by one start and ended by the next."""
STEPS = [2, 3, 4, 6, 7]
CLOCK = ("time", "throughput", "memory")


def start_again_and_again(context: ParallelContext, folder: Path) -> str:
    """What Prometheus was told after the last line."""
    port = free_port()
    settings = [
        "run.steps=7",
        "telemetry.log_every=2",
        "telemetry.tensorboard=true",
        "telemetry.wandb=offline",
        f"telemetry.prometheus_port={port}",
    ]
    scraped, close = [], PrometheusTracker.close

    def scrape_and_close(tracker: PrometheusTracker) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            scraped.append(answer.read().decode())
        close(tracker)

    PrometheusTracker.close = scrape_and_close  # type: ignore  # in a process of its own
    lines = {0: "{}", 2: "{}"}
    for checkpoint, last in STARTS:
        lines[last] = report(context, folder, checkpoint, last, lines[checkpoint], settings)
        wandb.teardown()  # its own process writes the file
    return scraped[-1]


def shown(line: dict[str, Any]) -> dict[str, float]:
    """A line as scalars: a vector by its extremes."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            found |= {f"{name}/min": min(value), f"{name}/max": max(value)}
        elif name not in ("step", "samples", "time"):
            found[name] = value
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trackers") / "demo"
    return folder, run_on_ranks(start_again_and_again, 1, folder)[0]


def test_lines_are_there_once_and_in_order(run: tuple[Path, str]) -> None:
    steps = [json.loads(text)["step"] for text in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert steps == STEPS


def test_tensorboard_shows_each_line_once(run: tuple[Path, str]) -> None:
    events = read_tensorboard(run[0])
    found: dict[int, dict[str, float]] = {step: {} for step in STEPS}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps)), name
        for event in events.Scalars(name):
            found[event.step][name] = event.value
    for step, line in read_lines(run[0]).items():
        expected = {name: float(np.float32(value)) for name, value in shown(line).items()}
        assert found[step] == pytest.approx(expected, rel=1e-6), step


def test_wandb_has_one_run_with_each_line_once_and_its_settings_and_code(run: tuple[Path, str]) -> None:
    files = sorted(run[0].glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    records = [record for file in files for record in read_wandb(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert len(files) == 4 and len({found.run_id for found in runs}) == 1
    configs = [{item.key: json.loads(item.value_json) for item in found.config.update} for found in runs]
    assert all(config["run"]["steps"] == 7 and config["code"] == code_version() for config in configs)
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["step"] for row in rows] == STEPS
    for row, line in zip(rows, read_lines(run[0]).values(), strict=True):
        expected, got = shown(line), {name: row[name] for name in row if name[0] != "_" and name != "step"}
        assert got.keys() == expected.keys()
        # Of steps that are trained again it keeps the times of the first.
        same = [name for name in got if line["step"] > 4 or not name.startswith(CLOCK)]
        assert {name: got[name] for name in same} == {name: expected[name] for name in same}


def test_prometheus_answers_the_last_line(run: tuple[Path, str]) -> None:
    found = {
        (sample.name, sample.labels["block"], sample.labels["index"]): sample.value
        for family in text_string_to_metric_families(run[1])
        for sample in family.samples
    }
    line, expected = read_lines(run[0])[7], {}
    for name, value in line.items():
        if name in ("samples", "time"):
            continue
        family, block = split_block(name)
        for index, number in enumerate(value) if isinstance(value, list) else [("", value)]:
            expected[gauge_name(family), block, str(index)] = number
    # A figure that the last line lacks stays at its last value.
    assert found == expected | {key: found[key] for key in found if key not in expected}
    assert {key[0] for key in found.keys() - expected.keys()} <= {"diffmoe_loss_validation"}
