"""What the commands of a row are given, and the numbers that are read of what they left."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any  # JSON values

import pytest

from diffmoe_scale.checkpoint.manifest import MANIFEST
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.harness.result import RESULT
from diffmoe_scale.study.commands import CURVE, LAST, TRAINING, checkpoints_to_score, write_settings
from diffmoe_scale.study.record import (
    deployed_rule,
    read_losses,
    read_row,
    read_scores,
    record_path,
    remove_scored,
    write_row,
)
from diffmoe_scale.study.variants import Row, make_rows, make_variants
from tests.report.test_evaluation import result
from tests.study.studies import result_of, small_study


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    """Of seed 0, by variant: 20 steps, a checkpoint every 10."""
    config = small_study(tmp_path)
    return {row.variant.name: row for row in make_rows(config, make_variants(config)) if row.seed == 0}


def save(row: Row, *steps: int) -> None:
    for step in steps:
        folder = RunDirectory(row.run).checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()


def steps_of(row: Row, stage: str) -> list[str]:
    return [path.name for path in checkpoints_to_score(row, stage)]


def log(row: Row, *records: dict[str, Any]) -> None:
    row.run.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": 10 * place, **record}) for place, record in enumerate(records, start=1)]
    RunDirectory(row.run).metrics.write_text("\n".join(lines) + "\n")


def write_scores(row: Row, stage: str, step: int, *, prompts: int, scorer: str = "exact rule") -> None:
    scored = result(step, 1.0, [1.0, 0.0, 1.0, 1.0])
    table = replace(scored.scores["exact rule"], prompts=list(range(2 * prompts)))
    path = row.scores / stage / scored.folder / RESULT
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(replace(scored, scores={scorer: table}))))


def test_the_last_checkpoint_is_scored_by_itself_and_those_before_it_for_the_curve(
    rows: dict[str, Row],
) -> None:
    row = rows["static"]
    for stage in (CURVE, LAST):
        assert write_settings(row, stage) is None  # nothing was trained
    save(row, 10, 20)
    assert steps_of(row, CURVE) == ["step_00000010"] and steps_of(row, LAST) == ["step_00000020"]
    for stage, prompts in ((CURVE, 2), (LAST, 3)):
        command = write_settings(row, stage)
        assert command is not None
        tree = json.loads(command.file.read_text())
        assert tree["suites"] == [{"kind": "scenes", "prompts": prompts}]
        assert tree["sampling"] == {"selection": "static"}
        assert tree["evaluation"]["seed"] == row.study.evaluation_seed
    remove_scored(row)
    assert steps_of(row, CURVE) == [] and steps_of(row, LAST) == ["step_00000020"]


def test_a_study_without_a_curve_scores_the_last_checkpoint_alone(rows: dict[str, Row]) -> None:
    row = replace(rows["diffmoe"], study=replace(rows["diffmoe"].study, curve_prompts=0))
    save(row, 10, 20)
    assert write_settings(row, CURVE) is None and write_settings(row, LAST) is not None


def test_rows_of_one_training_share_its_settings_and_have_scores_of_their_own(rows: dict[str, Row]) -> None:
    first, second = rows["diffmoe"], rows["static"]
    save(first, 20)
    files = [[write_settings(row, stage) for row in (first, second)] for stage in (TRAINING, LAST)]
    (training, again), (score, other) = files
    assert training is not None and training == again and f"seed: {first.seed}" in training.file.read_text()
    assert score is not None and other is not None and score.file != other.file


def test_the_rule_of_the_losses_is_that_of_the_pictures(rows: dict[str, Row]) -> None:
    rules = {name: deployed_rule(row) for name, row in rows.items()}
    assert rules == {"diffmoe": "threshold", "dense": "train", "static": "train"}


def test_losses_are_those_of_the_deployed_rule_without_what_is_no_number(rows: dict[str, Row]) -> None:
    row = rows["diffmoe"]
    name, capacity = "loss/validation_at/threshold", "moe/validation_capacity/threshold"
    log(row, {name: float("nan")}, {name: 0.5, "loss/validation_at/train": 9.0, capacity: 1.25})
    assert read_losses(row) == ([(20, 0.5)], [(20, 1.25)])
    log(row, {name: 0.5}, {name: float("nan")})
    with pytest.raises(RunError, match="no loss/validation_at/threshold of step 20"):
        read_losses(row)


def test_scores_stand_by_step_and_those_of_other_numbers_of_prompts_do_not_count(
    rows: dict[str, Row],
) -> None:
    row = rows["diffmoe"]
    write_scores(row, LAST, 20, prompts=3)
    write_scores(row, CURVE, 10, prompts=2)
    write_scores(row, CURVE, 5, prompts=7)  # of an earlier study.curve_prompts
    found = read_scores(row)
    assert [(score.step, score.prompts) for score in found] == [(10, 2), (20, 3)]
    assert found[-1].suites == {"one": 0.5, "two": 1.0} and found[-1].mean == 0.75


def test_scores_of_an_earlier_training_are_not_taken_for_the_row_s(rows: dict[str, Row]) -> None:
    row = rows["diffmoe"]
    write_scores(row, LAST, 20, prompts=3)
    (earlier,) = (row.scores / LAST).iterdir()
    tree = json.loads((earlier / RESULT).read_text())
    other = earlier.with_name("other")
    other.mkdir()
    (other / RESULT).write_text(json.dumps(tree | {"folder": "other"}))
    with pytest.raises(RunError, match="holds scores of an earlier training, too; remove it and run again"):
        read_scores(row)


def test_scores_that_are_missing_are_said(rows: dict[str, Row]) -> None:
    row = rows["diffmoe"]
    write_scores(row, CURVE, 10, prompts=2)
    with pytest.raises(RunError, match="holds no scores of the last step"):
        read_scores(row)
    write_scores(row, LAST, 20, prompts=3, scorer="judge")
    with pytest.raises(RunError, match="holds no scores; remove its folder"):
        read_scores(row)


def test_a_file_of_another_row_and_a_damaged_one_are_no_result(rows: dict[str, Row]) -> None:
    row, other = rows["diffmoe"], rows["dense"]
    made = result_of(row, loss=0.5, score=0.5)
    write_row(row, made)
    assert read_row(row) == made and read_row(other) is None
    record_path(row).rename(record_path(other))
    with pytest.raises(ValueError, match="is of another row than its name says"):
        read_row(other)
    for damaged in ("", "[]", "[" * 100_000, '{"variant": 3}'):
        record_path(other).write_text(damaged)
        with pytest.raises(ValueError, match="is no row of a study"):
            read_row(other)
