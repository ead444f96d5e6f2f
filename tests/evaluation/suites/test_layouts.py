"""The layouts and scores of GenEval 2, DPG-Bench, T2I-CompBench, OneIG-Bench and LongText-Bench."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.evaluation.harness.result import make_table
from diffmoe_scale.evaluation.suites.geneval2 import right_answers
from diffmoe_scale.evaluation.suites.suite import Answer
from tests.evaluation.suites.copies import SIDE, draw, lines_of, make_suite, tree, values

YES, NO = Answer("Yes.", 0.9), Answer("no", 0.2)


def test_geneval2_scores_are_those_of_its_own_code(tmp_path: Path) -> None:
    """Soft-TIFA GM and AM by hand; the answers that count as right as in evaluation.py."""
    suite, job = make_suite("geneval2", tmp_path), tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    paths = json.loads((job / "image_paths.json").read_text(encoding="utf-8"))
    assert list(paths) == ["two metal toys", "a green pig"] and all(
        Path(path).is_file() for path in paths.values()
    )
    assert right_answers("How many toys ...?", "two") == ("two", "Two", " two", " Two", "2", " 2")
    assert suite.questions(0)[1].text == "Are the toys metal? Answer in one word."
    score = suite.score_answers(0, {"0": Answer("2", 0.5), "1": Answer("Yes", 0.25), "2": Answer("Yes", 1.0)})
    assert score.value == pytest.approx(0.125 ** (1 / 3)) and score.parts["arithmetic mean"] == [1.75 / 3]
    (job / "score_lists.json").write_text("[[0.5, 0.25, 1.0], [0.0, 1.0]]", encoding="utf-8")
    assert values(suite.read_results(job)) == pytest.approx([0.5, 0.0])
    (job / "score_lists.json").write_text("[[0.5, 0.25, 1.0]]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds 1 lists; expected a list of scores for each of 2 prompts"):
        suite.read_results(job)


def test_dpg_grids_and_scores(tmp_path: Path) -> None:
    suite, job = make_suite("dpg_bench", tmp_path), tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    assert tree(job / "pictures/grids") == {"0.png", "partiprompts1.png"}
    with Image.open(job / "pictures/grids/partiprompts1.png") as picture:
        corners = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1], 0]
        assert picture.size == (2 * SIDE, 2 * SIDE) and corners.tolist() == [4, 5, 6, 7]
    # A question whose parent is answered with no counts as no, and so on.
    score = suite.score_answers(0, {"1": YES, "2": NO, "3": YES})
    assert score.value == pytest.approx(1 / 3) and score.parts == {"entity": [1.0], "attribute": [0.0, 1.0]}
    assert suite.score_answers(0, {"1": NO, "2": YES, "3": YES}).value == 0
    lines = [f"{job}/pictures/grids/{name}.png, 1.0, 0.5, 0.0, 1.0, 0.625" for name in ("partiprompts1", "0")]
    (job / "dpg_results.txt").write_text("\n".join([*lines, "Model: grids", "L1 ..."]), encoding="utf-8")
    assert values(suite.read_results(job)) == [1.0, 0.5, 0.0, 1.0] * 2
    (job / "dpg_results.txt").write_text(lines[0].replace("/job/", "/other/"), encoding="utf-8")
    with pytest.raises(ValueError, match="pictures of another model or of other settings than job"):
        suite.read_results(job)


def test_compbench_names_pictures_by_prompt_and_running_number(tmp_path: Path) -> None:
    suite, job = make_suite("t2i_compbench", tmp_path), tmp_path / "job"
    assert suite.file_of(0) == "samples/a red cat and a blue dog._000000.png"
    assert suite.file_of(10) == "samples/a green bench_000010.png" and suite.count == 20
    folder = job / "pictures/annotation_blip"
    folder.mkdir(parents=True)
    entries = [{"question_id": place, "answer": f"{place / 20:.4f}"} for place in range(20)]
    (folder / "vqa_result.json").write_text(json.dumps(entries), encoding="utf-8")
    assert values(suite.read_results(job)) == [place / 20 for place in range(20)]
    (folder / "vqa_result.json").write_text(
        json.dumps([{"question_id": 20, "answer": "1"}]), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="about picture 20, but 20 were drawn"):
        suite.read_results(job)


def test_oneig_images_by_class_and_model(tmp_path: Path) -> None:
    suite, job = make_suite("oneig", tmp_path), tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    expected = {"anime/job/000.webp", "object/job/001.webp", "text/job/000.webp"}
    assert tree(job / "pictures/images") == expected
    with Image.open(job / "pictures/images/object/job/001.webp") as picture:
        assert np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist() == [4, 5, 6, 7]
    assert suite.questions(0)[0].text == "Is there a girl?. Please answer 'Yes' or 'No' only."
    assert suite.score_answers(0, {"1": NO, "2": YES}).value == 0 and not suite.questions(2)
    (job / "oneig_results.csv").write_text(",job\nanime_000,0.5\nobject_001,0.75\n", encoding="utf-8")
    found = suite.read_results(job)
    assert found is not None
    table = make_table(suite, found)
    assert table.total.value == 0.625 and table.prompts == [0, 1] and table.by_prompt == [0.5, 0.75]
    (job / "oneig_results.csv").write_text(",gpt-4o\nanime_000,0.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"names no column job.*its column is the model's name"):
        suite.read_results(job)


def test_longtext_counts_words_that_are_read(tmp_path: Path) -> None:
    """`two` is asked for twice and read once."""
    suite, job = make_suite("longtext", tmp_path), tmp_path / "job"
    assert [suite.file_of(place) for place in (0, 3, 4)] == ["0000_1.png", "0000_4.png", "0007_1.png"]
    assert suite.score_answers(0, {"text": Answer("Every day: FRESH bread, brews")}).value == 1
    score = suite.score_answers(1, {"text": Answer("two ONE three")})
    assert score.value == 2 / 3 and score.parts["words"] == [1.0, 1.0, 0.0]
    assert suite.score_answers(1, {"text": Answer("No text recognized.")}).value == 0
    entries = [
        {
            "image": f"x/job/pictures/{suite.file_of(place)}",
            "prompt": suite.prompt_of(place).text,
            "ocr_results": "two",
        }
        for place in range(suite.count)
    ]
    job.mkdir()
    (job / "longtext_results.jsonl").write_text(lines_of(entries), encoding="utf-8")
    assert values(suite.read_results(job)) == [0.0] * 4 + [1 / 3] * 4
    entries[0]["image"] = entries[0]["image"].replace("job", "other")
    (job / "longtext_results.jsonl").write_text(lines_of(entries), encoding="utf-8")
    with pytest.raises(ValueError, match="results of another model or of other settings"):
        suite.read_results(job)
