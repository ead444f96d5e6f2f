"""What the processes of a row are given, and the command that makes it again."""

import json
import shlex
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import MANIFEST
from diffmoe_scale.config.load import load_config
from diffmoe_scale.study.commands import CURVE, LAST, TRAINING, rerun_command, write_settings
from diffmoe_scale.study.variants import Row, make_rows, make_variants
from tests.study.studies import small_study

STATIC = 2


def rows_of(folder: Path, settings: list[str]) -> list[Row]:
    config = small_study(folder, settings)
    return make_rows(config, make_variants(config))


def trained(folder: Path, settings: list[str], *, steps: list[int]) -> Row:
    """The row that differs in sampling alone, with complete checkpoints of these steps."""
    row = rows_of(folder, settings)[STATIC]
    for step in steps:
        checkpoint = row.run / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).touch()
    return row


@pytest.mark.parametrize(("stage", "steps", "prompts"), [(LAST, [20], 3), (CURVE, [5, 10], 2)])
def test_scores_are_of_the_last_checkpoint_and_on_fewer_prompts_of_those_before_it(
    tmp_path: Path, stage: str, steps: list[int], prompts: int
) -> None:
    row = trained(tmp_path, ["study.evaluation_seed=5"], steps=[5, 10, 20])
    command = write_settings(row, stage)
    assert command is not None and command.words[-1] == str(command.file)
    assert json.loads(command.file.read_text()) == {
        "evaluation": {
            "checkpoints": [f"{row.run}/checkpoints/step_{step:08d}" for step in steps],
            "output": f"{row.scores}/{stage}",
            "seed": 5,
        },
        "sampling": {"selection": "static"},
        "suites": [{"kind": "scenes", "prompts": prompts}],
    }


def test_a_stage_without_checkpoints_or_prompts_has_no_process(tmp_path: Path) -> None:
    row = trained(tmp_path, ["study.curve_prompts=0"], steps=[10])
    assert write_settings(row, CURVE) is None and write_settings(row, LAST) is None


def test_a_training_is_given_the_settings_of_its_row(tmp_path: Path) -> None:
    for row in rows_of(tmp_path, []):
        command = write_settings(row, TRAINING)
        assert command is not None and load_config(command.file, []) == row.config


def test_the_command_of_a_row_makes_it_with_the_settings_of_its_study(tmp_path: Path) -> None:
    settings = ["study.evaluation_seed=5", "run.steps=9"]
    row = rows_of(tmp_path, settings)[-1]
    words = shlex.split(rerun_command(tmp_path / "study.yaml", row, settings))
    assert words[:2] == ["python", "tools/study.py"]
    assert words[2:] == [
        *("--config", str(tmp_path / "study.yaml"), "--only", "static", "--seed", "1"),
        *settings,
    ]
