"""Curves of the lines of metrics.jsonl, and what is left out of them."""

import json
import math
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.report.html import join
from diffmoe_scale.report.plots import plot_curves
from diffmoe_scale.report.summary import status_section
from diffmoe_scale.report.training import curves_of, read_records, training_load
from diffmoe_scale.report.troubles import troubles_section
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


def test_validation_at_fixed_times_has_curves_by_rule_and_by_time() -> None:
    record: dict[str, Any] = {"step": 10}
    for rule in ("train", "threshold"):
        record |= {f"loss/validation_at/{rule}/{number}": 0.1 * number for number in range(1, 9)}
        record |= {f"loss/validation_at/{rule}": 0.45, f"moe/validation_capacity/{rule}": 1.1}
    curves = curves_of([record, record | {"step": 20}])
    mean = curves["Validation at fixed times, mean by rule"]
    assert [curve.label for curve in mean] == ["train", "threshold"]
    assert [curve.label for curve in curves["Validation capacity by rule"]] == ["train", "threshold"]
    for rule in ("train", "threshold"):
        by_time = curves[f"Validation by noise level (t), rule {rule}"]
        assert [curve.label for curve in by_time] == [f"{number}/8" for number in range(1, 9)]
        assert by_time[7].values.tolist() == [0.8, 0.8]


def test_each_metric_of_drawn_pictures_has_a_panel_of_its_own() -> None:
    records = [{"step": step, "metrics/fid": 100 / step, "metrics/kid_timm": 0.1} for step in (10, 20)]
    curves = curves_of([*records, {"step": 30, "metrics/<b>": 1.0}])
    assert curves["fid of drawn pictures"][0].values.tolist() == [10.0, 5.0]
    assert curves["kid_timm of drawn pictures"][0].values.tolist() == [0.1, 0.1]
    assert not any("<b>" in title for title in curves)


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


NAMES = [
    "step",
    "samples",
    "time",
    "loss/diffusion",
    "loss/by_time/3",
    "moe/threshold/1",
    "moe/load/1",
    "moe/load/-1",
    "time/step_s",
    "throughput/images_per_s",
    "memory/peak_gib",
    "data/bad_samples",
    "data/bad/corrupt",
    "data/lost/<b>",
    "defence/bad_steps",
]
NUMBERS = st.one_of(
    st.integers(-3, 2000), st.integers(), st.floats(), st.sampled_from(["nan", "inf", "-inf"])
)
VALUES = st.one_of(
    NUMBERS, NUMBERS, st.lists(NUMBERS, max_size=4), st.text(max_size=3), st.none(), st.booleans()
)
RECORDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9), RECORDS), max_size=6), st.binary(max_size=20))
def test_lines_of_any_content_make_a_page(
    tmp_path: Path, steps: list[tuple[int, dict[str, Any]]], torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, **record}).encode() for step, record in steps]
    path.write_bytes(b"\n".join([*lines[:3], torn, *lines[3:]]))
    records = read_records(path)
    assert [record["step"] for record in records] == sorted({record["step"] for record in records})
    for curve in (curve for curves in curves_of(records).values() for curve in curves):
        assert curve.steps.shape == curve.values.shape and not np.isinf(curve.values).any()
    page = join(
        [
            status_section(records, None, RunDirectory(tmp_path), "train"),
            troubles_section(records, None, tmp_path / "log.txt"),
        ]
    )
    assert "<b>" not in page
