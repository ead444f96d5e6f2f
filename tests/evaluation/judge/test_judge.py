"""Which stored answers count: those about the pictures that are there and to the questions of today."""

import json
from pathlib import Path
from typing import Any  # JSON values

import pytest

from diffmoe_scale.evaluation.harness.drawing import DrawnPicture
from diffmoe_scale.evaluation.judge.judge import StoredAnswers, fitting_answers, read_answers
from diffmoe_scale.evaluation.suites.suite import Answer
from tests.evaluation.suites.copies import make_suite


def drawn(digest: str) -> DrawnPicture:
    return DrawnPicture(digest, None, 1.0, 4.0, 1e9, 0.1, "")


def test_answers_count_for_their_picture_and_their_questions(tmp_path: Path) -> None:
    """Two pictures of each of two prompts, which are asked different questions."""
    suite = make_suite("geneval2", tmp_path, pictures=2)
    asked = [{question.name: question.text for question in suite.questions(place // 2)} for place in range(4)]
    stored = {
        place: StoredAnswers(f"d{place}", {"0": Answer(str(place))}, asked[place]) for place in range(4)
    }
    pictures = {place: drawn(f"d{place}") for place in range(4)}
    assert sorted(fitting_answers(suite, pictures, stored)) == [0, 1, 2, 3]
    assert fitting_answers(suite, pictures, stored)[3] == {"0": Answer("3")}
    assert sorted(fitting_answers(suite, pictures | {1: drawn("new")}, stored)) == [0, 2, 3]
    del pictures[2]
    assert sorted(fitting_answers(suite, pictures, stored)) == [0, 1, 3]
    stored[0] = StoredAnswers("d0", {}, asked[0] | {"0": "another question"})
    assert sorted(fitting_answers(suite, pictures, stored)) == [1, 3]


@pytest.mark.parametrize(
    "change", [{"answers": None}, {"answers": [3]}, {"place": []}, {"answers": [{"name": "0"}]}]
)
def test_records_of_another_kind_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    line = {"name": "0", "question": "A?", "answer": "Yes", "probability": 0.5}
    entry = {"place": 0, "digest": "d", "judge": "j", "answers": [line]}
    path = tmp_path / "answers-1of1-0.jsonl"
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert read_answers(tmp_path) == {"j": {0: StoredAnswers("d", {"0": Answer("Yes", 0.5)}, {"0": "A?"})}}
    path.write_text(json.dumps(entry | change), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has a record of answers that is not of this version"):
        read_answers(tmp_path)
