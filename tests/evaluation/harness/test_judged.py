"""GenEval 2 by a tiny judge: asked once about each picture, and scored again without it."""

from pathlib import Path
from typing import Any  # JSON values

import pytest

from diffmoe_scale.evaluation.harness.records import read_records
from diffmoe_scale.evaluation.judge.local_model import LocalJudge
from diffmoe_scale.evaluation.suites.suite import Question
from tests.evaluation.harness.runs import Stop, evaluate, train, write_config
from tests.evaluation.judge.models import write_judge
from tests.evaluation.suites.copies import GENEVAL2, write_copy
from tests.ranks import run_alone, run_on_ranks

QUESTIONS = [len(entry["vqa_list"]) for entry in GENEVAL2]  # type: ignore[arg-type]  # lists


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_on_ranks(train, 1, str(folder))
    return folder / "run"


def judge_thrice(folder: Path, run: Path) -> dict[str, Any]:
    """Killed at the second picture, then to the end, then with the stored answers alone."""
    checkpoint = run / "checkpoints/step_00000006"
    settings: dict[str, Any] = {"suites": [write_copy("geneval2", folder / "copy")], "sampling": {}}
    judge = {"kind": "transformers", "folder": str(write_judge(folder / "judge"))}
    config = write_config(folder, checkpoint, judge=judge, **settings)
    asked: list[str] = []
    answer = LocalJudge.answer

    def counting(self: LocalJudge, picture: bytes, questions: list[Question]) -> Any:
        if len(asked) == 3:
            raise Stop
        asked.extend(question.text for question in questions)
        return answer(self, picture, questions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalJudge, "answer", counting)
        drawn, _, _ = evaluate(config)
        asked.append("killed")
        again, results, _ = evaluate(config)
    (folder / "judge" / "config.json").unlink()
    config = write_config(folder, checkpoint, judge={"kind": "stored"}, **settings)
    nothing, stored, _ = evaluate(config)
    records = list(read_records(folder / "out" / results[0].folder, "answers"))
    scores = [next(iter(result[0].scores.items())) for result in (results, stored)]
    return {
        "drawn": [len(drawn), len(again), len(nothing)],
        "asked": asked,
        "records": records,
        "scores": scores,
    }


def test_questions_are_asked_once_and_scores_made_again_without_the_judge(run: Path, tmp_path: Path) -> None:
    found = run_alone(judge_thrice, tmp_path, run)
    assert found["drawn"] == [2, 0, 0]
    assert len(found["asked"]) == 1 + sum(QUESTIONS) and found["asked"][3] == "killed"
    (name, table), (stored_name, stored) = found["scores"]
    assert name == stored_name and name.startswith("judge ") and table == stored
    # Soft-TIFA GM by hand from the records.
    products = []
    for entry, count in zip(found["records"], QUESTIONS, strict=True):
        product = 1.0
        for line in entry["answers"]:
            assert line["question"] and line["expected"] and line["answer"] is not None
            product *= line["probability"]
        products.append(product ** (1 / count))
        assert entry["judge"] == name.split()[1] and len(entry["digest"]) == 16
    assert table.by_prompt == pytest.approx(products)
