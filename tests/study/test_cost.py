"""Equal operations, and how long a study takes."""

from pathlib import Path

import pytest

from diffmoe_scale.plan.flops import count_flops
from diffmoe_scale.study.cost import ASSUMED_FLOPS, ASSUMED_START_S, Cost, duration, estimate_seconds
from diffmoe_scale.study.record import write_row
from diffmoe_scale.study.study import Study
from tests.study.studies import result_of, small_study


def test_a_variant_that_costs_more_is_refused_with_how_much(tmp_path: Path) -> None:
    config = small_study(tmp_path, ["study.flops_tolerance=0.001"])
    with pytest.raises(
        ValueError, match=r"variant dense has -\d\.\d % operations a picture against diffmoe; "
    ):
        Study(config, tmp_path / "study.yaml", [])


def test_the_tolerance_is_the_difference_that_is_allowed(tmp_path: Path) -> None:
    costs = Study(small_study(tmp_path), tmp_path / "study.yaml", []).costs
    deviation = abs(costs["dense"].forward / costs["diffmoe"].forward - 1)
    Study(small_study(tmp_path, [f"study.flops_tolerance={1.01 * deviation}"]), tmp_path / "study.yaml", [])
    with pytest.raises(ValueError, match="variant dense has"):
        Study(small_study(tmp_path, [f"study.flops_tolerance={0.99 * deviation}"]), tmp_path, [])


def test_a_variant_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise ValueError("no such width")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffmoe_scale.study.cost.count_flops", fail)
        with pytest.raises(ValueError, match=r"^variant diffmoe: no such width$"):
            Study(small_study(tmp_path), tmp_path / "study.yaml", [])


def test_costs_are_of_a_picture_and_of_a_training_sample(tmp_path: Path) -> None:
    study = Study(small_study(tmp_path), tmp_path / "study.yaml", [])
    flops = count_flops(study.variants[0].config)
    assert study.costs["diffmoe"] == Cost(sum(flops.forward.values()), flops.model)
    assert study.costs["diffmoe"].training > 2 * study.costs["diffmoe"].forward


def test_time_is_taken_from_operations_until_a_row_was_measured(tmp_path: Path) -> None:
    row = Study(small_study(tmp_path, ["sampling.steps=4", "sampling.guidance=1.0"]), tmp_path, []).rows[0]
    cost = Cost(forward=1e9, training=3e9)
    # 20 steps of 64 pictures, then 3 prompts a suite at the last checkpoint and 2 at the one before.
    work = 20 * 64 * cost.training + 6 * (3 + 2) * 4 * cost.forward
    assert estimate_seconds(row, cost, []) == pytest.approx(work / ASSUMED_FLOPS + ASSUMED_START_S)
    # One that trained for 60 s with 3e6 operations a sample, and took 14 s to score.
    done = result_of(row, loss=0.5, score=0.5)
    assert estimate_seconds(row, cost, [done]) == pytest.approx(60.0 * 3e9 / 3e6 + 14.0)


def test_the_plan_counts_trainings_and_takes_its_time_from_what_is_done(tmp_path: Path) -> None:
    study = Study(small_study(tmp_path), tmp_path / "study.yaml", [])
    before = study.describe_plan(study.rows)
    assert "6 rows (3 variants x 2 seeds), 6 to do" in before
    assert "4 trainings of 20 steps: 80 steps of 64 pictures" in before
    assert "before a row was measured" in before[-1]
    first = study.rows[0]
    write_row(first, result_of(first, loss=0.5, score=0.5))
    after = study.describe_plan(study.rows)
    assert "6 rows (3 variants x 2 seeds), 5 to do" in after and "as the rows that are done took" in after[-1]
    assert f"diffmoe seed 0 ({first.fingerprint}): loss 0.50000, score 0.500" in study.describe_rows(
        study.rows
    )


def test_only_and_seed_choose_rows(tmp_path: Path) -> None:
    study = Study(small_study(tmp_path), tmp_path / "study.yaml", [])
    assert [row.name for row in study.chosen(variants=["dense"], seeds=[1])] == [study.rows[4].name]
    with pytest.raises(ValueError, match="--only is 'no'; expected one of diffmoe, dense, static"):
        study.chosen(variants=["no"], seeds=[])
    with pytest.raises(ValueError, match=r"--seed is 7; expected one of study.seeds \(0, 1\)"):
        study.chosen(variants=[], seeds=[7])


def test_durations_are_as_a_reader_says_them() -> None:
    assert [duration(seconds) for seconds in (7, 600, 7200)] == ["7 s", "10 min", "2.0 h"]
