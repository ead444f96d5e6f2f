"""RUN/evaluation.json: written, read, and refused when it is damaged."""

import json
import math
from pathlib import Path
from typing import Any  # JSON trees

import numpy as np
import pytest

from diffmoe_scale.evaluation.results import (
    Capacity,
    Evaluation,
    SuiteScore,
    read_evaluation,
    write_evaluation,
)

LOAD_TLE = np.array([[[1.0, 0.5], [2.0, 0.5]], [[1.0, 1.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
EVALUATION = Evaluation(
    checkpoint="run/checkpoints/step_00000005",
    step=5,
    prompts_per_suite=96,
    sampling={"steps": 3},
    scores={
        "one": SuiteScore(score=0.5, shuffled=0.25, prompts=100),
        "two": SuiteScore(score=1.0, shuffled=0.0, prompts=20),
    },
    capacity=Capacity(average=1.125, times=[1.0, 0.5, 0.25], layers=[1, 3], load_TLE=LOAD_TLE),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    assert read_evaluation(path) is None
    write_evaluation(path, EVALUATION)
    found = read_evaluation(path)
    assert found is not None and found.scores == EVALUATION.scores and found.sampling == {"steps": 3}
    assert (found.step, found.checkpoint) == (5, EVALUATION.checkpoint)
    assert np.array_equal(found.capacity.load_TLE, LOAD_TLE) and found.capacity.times == [1.0, 0.5, 0.25]
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["capacity"]["by_time"] == [1.0, 1.25, 1.0]


def test_a_dense_model_has_no_load(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    dense = Evaluation(**(vars(EVALUATION) | {"capacity": Capacity()}))
    write_evaluation(path, dense)
    found = read_evaluation(path)
    assert found is not None and not found.capacity.has_load and found.capacity.average == 1


def test_errors_are_those_of_shares_of_independent_pictures() -> None:
    assert EVALUATION.scores["one"].error == pytest.approx(math.sqrt(0.5 * 0.5 / 100))
    assert EVALUATION.mean == SuiteScore(score=0.75, shuffled=0.125, prompts=120)
    assert EVALUATION.error_of_mean == pytest.approx(0.05 / 2)


def changed(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": "a",
        "step": 5,
        "scores": {"one": {"score": 0.5, "shuffled": 0.1, "prompts": 4}},
        "capacity": {"average": 1.0, "times": [1.0], "layers": [1], "load_TLE": [[[1.0, 1.0]]]},
    } | changes


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        "text",
        changed(scores={}),
        changed(scores=[1]),
        changed(scores={"one": {"score": 2.0, "shuffled": 0.1, "prompts": 4}}),
        changed(scores={"one": {"score": math.nan, "shuffled": 0.1, "prompts": 4}}),
        changed(scores={"one": {"score": "0.5", "shuffled": 0.1, "prompts": 4}}),
        changed(scores={"one": {"score": 0.5, "shuffled": 0.1, "prompts": -4}}),
        changed(scores={"one": 3}),
        changed(step="5"),
        changed(step=True),
        changed(step=10**400),
        changed(capacity=None),
        changed(capacity={"average": 10**400, "load_TLE": []}),
        changed(capacity={"average": 1.0, "times": [1.0, 0.5], "layers": [1], "load_TLE": [[[1.0]]]}),
        changed(capacity={"average": 1.0, "times": [1.0], "layers": [1], "load_TLE": [[[1.0], 2.0]]}),
        changed(capacity={"average": 1.0, "times": [1.0], "layers": [1], "load_TLE": [[[math.inf]]]}),
        changed(capacity={"average": 1.0, "times": [1.0], "layers": [1], "load_TLE": [[[-1.0]]]}),
    ],
)
def test_what_is_no_evaluation_is_refused_with_the_file(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ValueError, match=r"evaluation\.json is no evaluation"):
        read_evaluation(path)


@pytest.mark.parametrize("content", [b"", b'{"scores": {', b"\xff\xfe", b"[" * 100_000, b"\0" * 100])
def test_torn_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluation\.json is"):
        read_evaluation(path)


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(changed()), encoding="utf-8")
    assert read_evaluation(path) is not None
    dense = changed(capacity={"average": 1.0, "times": [1.0], "by_time": [], "layers": [], "load_TLE": [[]]})
    path.write_text(json.dumps(dense), encoding="utf-8")
    assert read_evaluation(path) is not None
