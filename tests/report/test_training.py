"""Curves of the lines of metrics.jsonl, and what is left out of them."""

import json
import math
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import numpy as np
import pytest

from diffmoe_scale.report.plots import plot_curves
from diffmoe_scale.report.training import curves_of, read_records, training_load
from tests.report.test_plots import words


def plot_training(records: list[dict[str, Any]]) -> str:
    return plot_curves(curves_of(records))


def test_training_panels_are_those_that_have_data() -> None:
    records: list[dict[str, Any]] = [
        {"step": step, "loss/diffusion": 1 / step, "moe/threshold/3": [0.1, 0.2]} for step in range(1, 100)
    ]
    records[50]["loss/validation"] = 0.5
    shown = words(plot_training(records))
    assert {
        "Diffusion loss",
        "training",
        "validation",
        "Dynamic threshold, mean over experts",
        "block 3",
    } <= shown
    assert not shown & {"Router losses", "Gradient norm", "Learning rate", "Images a second"}


def test_a_run_without_lines_or_with_no_finite_number_still_gives_a_figure() -> None:
    assert "Diffusion loss" not in words(plot_training([]))
    assert "Diffusion loss" not in words(plot_training([{"step": 1, "loss/diffusion": math.nan}]))
    assert "Diffusion loss" in words(
        plot_training([{"step": 1, "loss/diffusion": math.nan}, {"step": 2, "loss/diffusion": 1.0}])
    )


def test_a_curve_holds_the_logged_values_and_means_of_vectors_by_step() -> None:
    records = [
        {"step": 5, "loss/diffusion": 0.5, "moe/threshold/1": [0.25, 0.75]},
        {"step": 10, "loss/diffusion": math.inf, "moe/threshold/1": [1.0, 0.0]},
    ]
    curves = curves_of(records)
    (loss,), (threshold,) = curves["Diffusion loss"], curves["Dynamic threshold, mean over experts"]
    assert loss.steps.tolist() == [5, 10] and loss.values[0] == 0.5 and np.isnan(loss.values[1])
    assert threshold.values.tolist() == [0.5, 0.5] and threshold.label == "block 1"


@pytest.mark.parametrize(
    "line",
    [
        '{"step": -1}',
        '{"step": true}',
        '{"step": 1.5}',
        '{"step": "7"}',
        "[1]",
        "{" * 5000,
        "[" * 100_000,
        '{"step": 1e400}',
        '{"step": ' + "9" * 5000 + "}",
        "\x00\xff",
    ],
)
def test_lines_without_a_step_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 4}}\n{line}\n{{"step": 5}}\n', encoding="latin-1")
    assert [record["step"] for record in read_records(path)] == [4, 5]


def test_entries_that_are_no_numbers_are_left_out_and_huge_ones_are_infinite(tmp_path: Path) -> None:
    entries = {
        "a": "text",
        "b": [1, "x"],
        "c": {"d": 1},
        "e": None,
        "f": [],
        "g": True,
        "h": 10**400,
        "i": [1, 2],
    }
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, **entries}), encoding="utf-8")
    assert read_records(path) == [{"step": 1, "h": math.inf, "i": [1.0, 2.0]}]


def test_load_of_training_is_that_of_the_last_line_that_has_it() -> None:
    records = [{"step": 1, "moe/load/1": [1.0, 2.0], "moe/load/3": [1.0]}, {"step": 2, "moe/load/x": [1.0]}]
    assert "in training, at step 1" in training_load(records)
    assert training_load([{"step": 1}]) == ""


def test_steps_trained_again_after_a_rollback_replace_those_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": step, "loss/diffusion": loss} for step, loss in ((1, 1.0), (2, 9.0), (3, 9.0), (2, 0.5))
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert [record["loss/diffusion"] for record in read_records(path)] == [1.0, 0.5, 9.0]
