"""GenEval: its prompt file to its folders, and a made results file back."""

import json
import re
from pathlib import Path
from typing import Any  # JSON values

import pytest

from diffmoe_scale.evaluation.harness.result import make_table
from diffmoe_scale.evaluation.suites.geneval import RESULTS
from diffmoe_scale.evaluation.suites.suite import Suite
from tests.evaluation.suites.copies import GENEVAL, draw, lines_of, make_suite


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return make_suite("geneval", tmp_path)


def results(job: Path, *, wrong: set[str] = frozenset()) -> list[dict[str, Any]]:  # type: ignore[assignment]
    """As evaluate_images.py would write them, having listed the folders."""
    entries = []
    for folder in sorted((job / "pictures").iterdir()):
        if not folder.name.isdigit():
            continue
        metadata = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8"))
        for picture in sorted((folder / "samples").iterdir()):
            if re.match(r"\d+\.png", picture.name):
                entries.append(
                    {
                        "filename": str(picture),
                        "tag": metadata["tag"],
                        "prompt": metadata["prompt"],
                        "correct": f"{folder.name}/{picture.stem}" not in wrong,
                        "reason": "",
                        "metadata": json.dumps(metadata),
                        "details": "{}",
                    }
                )
    return entries


def test_folders_are_those_of_the_benchmark(suite: Suite, tmp_path: Path) -> None:
    job = tmp_path / "job"
    draw(suite, job)
    assert "evaluation/evaluate_images.py" in suite.export(job / "pictures")
    assert sorted(path.name for path in (job / "pictures").iterdir()) == ["00000", "00001", "00002"]
    for number, entry in enumerate(GENEVAL):
        folder = job / "pictures" / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8")) == entry
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]


def test_results_become_the_table_of_the_benchmark(suite: Suite, tmp_path: Path) -> None:
    """single_object 3 of 4; counting 2 and 3 of 4: 5 of 8; overall the mean of the two tags."""
    job = tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    entries = results(job, wrong={"00000/0002", "00001/0000", "00001/0003", "00002/0001"})
    (job / RESULTS).write_text(lines_of(entries[::-1]), encoding="utf-8")
    found = suite.read_results(job)
    assert found is not None
    table = make_table(suite, found)
    assert table.groups["single_object"].value == 0.75 and table.groups["counting"].value == 0.625
    assert table.total.value == (0.75 + 0.625) / 2 and table.by_prompt == [0.75, 0.5, 0.75]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"filename": "/x/other-job/pictures/00000/samples/0000.png"},
            "pictures of another model or of other",
        ),
        ({"filename": "out/job/pictures/00009/samples/0000.png"}, "which was not drawn: there are 3 prompts"),
        ({"filename": "out/job/pictures/00000/samples/0004.png"}, "which was not drawn"),
        ({"filename": "00000.png"}, "expected pictures job/pictures/00000/samples"),
        ({"prompt": "a photo of a cow"}, "results of another file of prompts"),
        (
            {"correct": "yes"},
            "line 1 has correct 'yes'; expected an object of GenEval's results with filename",
        ),
    ],
)
def test_results_of_others_are_refused(
    suite: Suite, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    job = tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    entries = results(job)
    (job / RESULTS).write_text(lines_of([entries[0] | change, *entries[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{RESULTS}.*{message}"):
        suite.read_results(job)


def test_results_of_some_pictures_are_refused(suite: Suite, tmp_path: Path) -> None:
    job = tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    (job / RESULTS).write_text(lines_of(results(job)[:-2]), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the results of 2 of 12 pictures"):
        suite.read_results(job)
