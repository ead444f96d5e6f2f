import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # lines of JSON

import pytest
import torch.distributed as dist

from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks
from tests.train.reports import EXPERTS, read_lines, report


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    run_on_ranks(report, 2, folder)
    return read_lines(folder)


def test_lines_are_written_at_log_steps_after_a_validation_and_at_the_end(
    lines: dict[int, dict[str, Any]],
) -> None:
    assert list(lines) == [2, 3, 4, 5] and [line["samples"] for line in lines.values()] == [16, 24, 32, 40]
    assert [step for step, line in lines.items() if "loss/validation" in line] == [3] and lines[3][
        "loss/validation"
    ] == 0.5


def test_line_holds_means_over_steps_micro_batches_and_ranks(lines: dict[int, dict[str, Any]]) -> None:
    for line in lines.values():
        assert (
            line["loss/diffusion"] == 2.5
            and line["moe/capacity"] == 1.0
            and line["moe/load/1"] == [4.0, 0.0, 0.0, 0.0]
        )
        assert line["moe/threshold/1"] == [0.0] * EXPERTS and line["memory/peak_gib"] > 0.1


def test_line_holds_the_loss_of_each_tenth_of_the_time_that_had_samples(
    lines: dict[int, dict[str, Any]],
) -> None:
    by_time = {name: value for name, value in lines[2].items() if name.startswith("loss/by_time")}
    assert by_time == {"loss/by_time/0": 2.0, "loss/by_time/1": 3.0}


def test_broken_samples_and_skipped_steps_are_counted_since_the_last_line(
    lines: dict[int, dict[str, Any]],
) -> None:
    for name in ("data/bad_samples", "data/bad/corrupt", "data/note/caption"):
        assert [line[name] for line in lines.values()] == [2.0, 1.0, 1.0, 1.0]
    assert "data/bad/read" not in lines[2]
    assert [line["optimizer/skipped_steps"] for line in lines.values()] == [1.0, 0.0, 0.0, 0.0]


def test_bad_steps_are_counted_and_scores_averaged_where_there_was_one(
    lines: dict[int, dict[str, Any]],
) -> None:
    assert [line["defence/bad_steps"] for line in lines.values()] == [1.0, 0.0, 0.0, 1.0]
    assert [line.get("defence/z_score") for line in lines.values()] == [0.75, None, 2.0, 2.5]


def test_norms_of_skipped_steps_are_left_out_and_rates_are_the_last(lines: dict[int, dict[str, Any]]) -> None:
    assert [line["optimizer/gradient_norm"] for line in lines.values()] == [10.0] * 4
    assert [line["optimizer/learning_rate"] for line in lines.values()] == [0.002, 0.003, 0.004, 0.005]


def test_phases_are_seconds_a_step_and_name_the_slowest_rank(lines: dict[int, dict[str, Any]]) -> None:
    for line in lines.values():
        assert line["time/median/data_s"] == pytest.approx(line["time/data_s"]), "of two ranks"
        assert 0.03 <= line["time/data_s"] < line["time/slowest/data_s"] < 2 * line["time/data_s"]
        assert line["time/slowest/data_rank"] == 1 and line["time/backward_s"] == 0


def test_speed_is_images_over_time(lines: dict[int, dict[str, Any]]) -> None:
    for line in lines.values():
        assert line["throughput/images_per_s"] == pytest.approx(8 / line["time/step_s"])


def test_continued_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    run_on_ranks(report, 2, tmp_path)
    before = read_lines(tmp_path)
    run_on_ranks(report, 2, tmp_path, 3)
    after = read_lines(tmp_path)
    assert list(after) == [2, 3, 4, 5] and before[3] == after[3] and before[4]["time"] < after[4]["time"]


def report_in_parts(context: ParallelContext, folder: Path, steps: Sequence[int]) -> list[str]:
    """Lines are due at step 5, and at step 3 for its validation; the run is broken off after each of
    `steps`. The states there, of the main rank, as in a checkpoint."""
    line, start, states = "{}", 0, []
    for step in steps:
        found = [report(context, folder, start, step, line, ["telemetry.log_every=5"])]
        dist.broadcast_object_list(found, group=context.control_group)
        line, start = found[0], step
        states.append(line)
    return states


def test_line_after_a_resume_covers_the_steps_since_the_line_before_it(tmp_path: Path) -> None:
    whole, parts = (
        run_on_ranks(report_in_parts, 2, tmp_path / name, steps)[0]
        for name, steps in (("whole", [5]), ("parts", [1, 2, 4, 5]))
    )
    assert whole == ["{}"] and [json.loads(state).get("since") for state in parts] == [0, 0, 3, None]
    expected, got = (read_lines(tmp_path / name) for name in ("whole", "parts"))
    # Two sleeps a step of 10 ms, on rank 1 of 20.
    assert got[3]["time/data_s"] >= 0.03 and got[3]["time/slowest/data_s"] >= 0.04
    assert got[3]["data/bad_samples"] == 3 and got[5]["data/bad_samples"] == 2
    for line in (*expected.values(), *got.values()):
        for name in [name for name in line if name.startswith(("time", "throughput", "memory"))]:
            del line[name]
    assert got == expected


def test_line_after_a_resume_on_other_ranks_covers_the_same_steps(tmp_path: Path) -> None:
    (state,) = run_on_ranks(report_in_parts, 2, tmp_path, [2])[0]
    for size in (1, 4):
        run_on_ranks(report, size, tmp_path, 2, 3, state, ["telemetry.log_every=5"])
        line = read_lines(tmp_path)[3]
        # Two steps of two ranks, whose losses are 2.5 on average, and a step of the new ranks.
        total, count = 2 * 2 * 2.5 + sum(1.5 + 2 * rank for rank in range(size)), 2 * 2 + size
        assert line["loss/diffusion"] == pytest.approx(total / count)
        assert line["time/data_s"] >= 0.02
