"""Equal operations, and how long a study takes."""

from pathlib import Path

import pytest

from diffmoe_scale.study.cost import duration
from diffmoe_scale.study.record import write_row
from diffmoe_scale.study.study import Study
from tests.study.studies import result_of, small_study


def test_a_variant_that_costs_more_is_refused_with_how_much(tmp_path: Path) -> None:
    config = small_study(tmp_path, ["study.flops_tolerance=0.001"])
    with pytest.raises(
        ValueError, match=r"variant dense has -\d\.\d % operations a picture against diffmoe; "
    ):
        Study(config, tmp_path / "study.yaml", [])


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
