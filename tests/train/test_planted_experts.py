"""Runs whose experts went wrong: the alarms and the report say so."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.report.report import write_report
from diffmoe_scale.telemetry.log import setup_logging
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train import setup
from diffmoe_scale.train.run import train
from tests.ranks import run_on_ranks
from tests.train.runs import text_settings, tiny_config

DEAD = 2
SETTINGS = [
    "alarms.after=1",
    "telemetry.log_every=2",
    "run.steps=6",
    # What is planted stays.
    "optimizer.router_learning_rate_ratio=0",
    "optimizer.weight_decay=0",
]


def kill(layer: MoELayer) -> None:
    """No token prefers an expert whose logit is the mean of two others'."""
    layer.router.weight[DEAD] = layer.router.weight[:2].mean(dim=0)


def collapse(layer: MoELayer) -> None:
    """All experts want the same tokens."""
    layer.router.weight.copy_(layer.router.weight[:1].expand_as(layer.router.weight).clone())


PLANTS: dict[str, Callable[[MoELayer], None]] = {"dead": kill, "collapsed": collapse}


def train_planted(context: ParallelContext, plant: str, settings: list[str]) -> None:
    build = setup.build_networks

    def build_planted(*arguments: object, **options: object) -> Networks:
        networks = build(*arguments, **options)  # type: ignore[arg-type]  # as they came
        with torch.no_grad():
            for layer in networks.denoiser.moe_layers():
                PLANTS[plant](layer)
        return networks

    setup.build_networks = build_planted  # in a process of its own
    train_logged(context, settings)


def train_logged(context: ParallelContext, settings: list[str]) -> None:
    config = tiny_config(settings)
    directory = RunDirectory(Path(config.run.directory))
    setup_logging(directory.path, rank=0)
    train(config, context, directory)


def run_planted(folder: Path, plant: str, *settings: str) -> tuple[str, str, RunDirectory]:
    """Log, report as text without its pictures, and run directory."""
    run_on_ranks(train_planted, 1, plant, [*text_settings(folder), *SETTINGS, *settings])
    directory = RunDirectory(folder / "run")
    page = write_report(directory.path).read_text(encoding="utf-8")
    return directory.log.read_text(), re.sub(r'(src|alt)="[^"]*"', "", page), directory


def last_health(directory: RunDirectory, figure: str) -> list[float]:
    values: list[float] = read_metrics(directory.metrics)[-1][f"moe/health/{figure}"]
    return values


def test_a_dead_expert_is_an_alarm_with_its_number_and_stands_in_the_report(tmp_path: Path) -> None:
    log, page, directory = run_planted(tmp_path, "dead", "moe.router=token_choice", "moe.balance_weight=0")
    assert re.search(rf"alarm dead/1: expert {DEAD} of block 1 .*raise moe.balance_weight", log)
    assert last_health(directory, "dead") == [1.0]
    assert last_health(directory, "effective_experts")[0] <= 3.001
    assert "<td>dead/1</td>" in page and "Dead experts" in page


def test_a_collapsed_router_is_an_alarm_and_stands_in_the_report(tmp_path: Path) -> None:
    log, page, directory = run_planted(tmp_path, "collapsed")
    for name in ("overlap", "similarity"):
        assert f"alarm {name}/1: block 1: 1.00" in log
        assert last_health(directory, name)[0] == pytest.approx(1, abs=1e-3)
        assert f"<td>{name}/1</td>" in page
    assert last_health(directory, "uncovered")[0] == pytest.approx(0.75)


def test_a_run_without_a_plant_has_no_such_alarm(tmp_path: Path) -> None:
    run_on_ranks(train_logged, 1, [*text_settings(tmp_path), *SETTINGS])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "alarm overlap" not in log and "alarm similarity" not in log
