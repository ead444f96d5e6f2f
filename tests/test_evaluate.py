"""Scores by the command line, from a run that was trained before."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale import evaluate
from diffmoe_scale.scenes.suites import SUITES
from tests.ranks import run_alone, run_on_ranks
from tests.test_sample import SETTINGS, call, train
from tests.train.runs import text_settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    run_on_ranks(train, 1, [*text_settings(folder), *SETTINGS, "model.image_size=32"], expert_parallel=1)
    return folder / "run"


def test_scores_pictures_and_report_are_written_and_the_table_is_printed(run: Path) -> None:
    ((code, told),) = run_alone(
        call, evaluate.main, [["--checkpoint", str(run), "--prompts", "3", "--anyway"]]
    )
    assert (
        code == 0 and told.splitlines()[-1] == f"{run}/report.html" and "average inference capacity" in told
    )
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (
        found["step"] == 4
        and list(found["scores"]) == list(SUITES)
        and {entry["prompts"] for entry in found["scores"].values()} == {3}
    )
    # A model of 4 steps draws nothing that the checker takes for what was asked.
    assert all(entry["score"] == 0 for entry in found["scores"].values())
    assert len(found["capacity"]["load_TLE"]) == 2 and found["capacity"]["average"] > 0
    for name in SUITES:
        with Image.open(run / "samples" / f"evaluation-{name}.png") as grid:
            assert grid.width > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(name.replace("_", " ") in page for name in SUITES)


def test_one_prompt_has_no_other_to_be_shuffled_with(run: Path) -> None:
    ((code, told),) = run_alone(call, evaluate.main, [["--checkpoint", str(run), "--prompts", "1"]])
    assert code == 2 and "error: --prompts is 1; expected 2 (captions are also shuffled) to" in told


def test_a_model_whose_captions_are_no_scenes_is_not_scored(run: Path) -> None:
    ((code, told),) = run_alone(call, evaluate.main, [["--checkpoint", str(run), "--prompts", "3"]])
    line = told.splitlines()[-1]
    assert code == 2 and "error: this model's captions are not about coloured shapes (none of 10 is" in line
    assert line.endswith("give --anyway to have them all the same")
