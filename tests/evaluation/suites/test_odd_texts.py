"""OneIG-Bench and LongText-Bench where something is missing, doubled or of another kind."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale.config.evaluation import SuiteConfig
from diffmoe_scale.evaluation.suites.build import build_suite
from diffmoe_scale.evaluation.suites.longtext import split_words
from diffmoe_scale.evaluation.suites.suite import Answer
from tests.evaluation.suites.copies import draw, lines_of, make_suite, write_copy


def test_a_word_is_counted_as_often_as_it_is_read_and_accents_belong_to_words(tmp_path: Path) -> None:
    entry = {"prompt": "p", "text": ["the cat", "the dog"], "prompt_id": 3}
    (tmp_path / "a.jsonl").write_text(lines_of([entry]), encoding="utf-8")
    suite = build_suite(SuiteConfig(kind="longtext", file=str(tmp_path / "a.jsonl")), seed=0)
    assert suite.score_answers(0, {"text": Answer("the the the cat cat bird")}).value == 3 / 4
    assert split_words("Café, OLÉ! 3", is_chinese=False) == ["café", "olé", "3"]
    assert split_words("No text recognized.", is_chinese=False) == []
    assert split_words("你好 Ab", is_chinese=True) == ["你", "好", "A", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}, {}], "has a prompt_id twice, or below 0"),
        ([{"prompt_id": -1}], "has a prompt_id twice, or below 0"),
        ([{"text": ["?!"]}], "entry 1 has no text to be written"),
    ],
)
def test_longtext_names_pictures_by_ids(
    changes: list[dict[str, object]], message: str, tmp_path: Path
) -> None:
    entry: dict[str, object] = {"prompt": "p", "text": ["the cat"], "prompt_id": 3}
    (tmp_path / "a.jsonl").write_text(lines_of([entry | change for change in changes]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        build_suite(SuiteConfig(kind="longtext", file=str(tmp_path / "a.jsonl")), seed=0)


def test_longtext_results_are_of_the_same_prompts(tmp_path: Path) -> None:
    suite, job = make_suite("longtext", tmp_path, pictures=1), tmp_path / "job"
    job.mkdir()
    entries = [
        {"image": f"job/{suite.file_of(place)}", "prompt": "another", "ocr_results": "two"}
        for place in range(suite.count)
    ]
    (job / "longtext_results.jsonl").write_text(lines_of(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 is about another prompt than 0000_1\.png"):
        suite.read_results(job)


def test_oneig_counts_a_question_without_a_parent_and_of_each_parent(tmp_path: Path) -> None:
    settings = write_copy("oneig", tmp_path)
    asked = {
        "000": {
            "question": {"1": "A?", "2": "B?", "3": "C?"},
            "dependency": {"1": [0], "2": [1], "3": [1, 2]},
        }
    }
    (tmp_path / "anime.json").write_text(json.dumps(asked), encoding="utf-8")
    suite = build_suite(SuiteConfig(**settings), seed=0)
    yes, no = Answer("Yes"), Answer("No")
    assert suite.score_answers(0, {"1": yes, "2": yes, "3": yes}).value == 1
    assert suite.score_answers(0, {"1": yes, "2": no, "3": yes}).value == pytest.approx(1 / 3)
    assert [suite.is_scored(prompt) for prompt in range(3)] == [True, True, False]


def test_oneig_gives_every_picture_of_a_prompt_its_score_and_names_what_is_missing(tmp_path: Path) -> None:
    suite, job = make_suite("oneig", tmp_path), tmp_path / "job"
    job.mkdir()
    (job / "oneig_results.csv").write_text(",job\nanime_000,0.5\nobject_001,0.75\n", encoding="utf-8")
    found = suite.read_results(job)
    assert found is not None and sorted(found) == list(range(8))
    (job / "oneig_results.csv").write_text(",job\nanime_000,0.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks a row object_001; score all pictures of job"):
        suite.read_results(job)


@pytest.mark.parametrize("pictures", [1, 4])
def test_oneig_is_told_how_many_tiles_a_picture_has(pictures: int, tmp_path: Path) -> None:
    suite = make_suite("oneig", tmp_path, pictures=pictures)
    draw(suite, tmp_path / "job")
    side = 2 if pictures == 4 else 1
    assert f"--image_grid {side},{side}," in suite.export(tmp_path / "job" / "pictures")
    with Image.open(tmp_path / "job/pictures/images/anime/job/000.webp") as picture:
        assert picture.size == (8 * side, 8 * side)


def test_oneig_refuses_other_tiles_and_questions_of_others(tmp_path: Path) -> None:
    settings = write_copy("oneig", tmp_path)
    for pictures in (2, 3, 5):
        with pytest.raises(ValueError, match=rf"pictures is {pictures}; expected 1 or 4"):
            build_suite(SuiteConfig(**settings, pictures=pictures), seed=0)
    (tmp_path / "other.csv").write_text("category,id,prompt_en\nCats,000,a cat\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"line 2 has the category 'Cats' .* a category of Anime_Stylization"
    ):
        build_suite(SuiteConfig(kind="oneig", file=str(tmp_path / "other.csv")), seed=0)
    (tmp_path / "object.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"object\.json holds no questions of OneIG-Bench"):
        build_suite(SuiteConfig(**settings), seed=0)
    (tmp_path / "object.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="asks nothing about object 001"):
        build_suite(SuiteConfig(**settings), seed=0)


def test_chinese_prompts_of_oneig_have_questions_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("category,id,prompt_cn\nPortrait,000,一个人\n", encoding="utf-8")
    asked = {"000": {"question": {"1": "A?"}, "dependency": {"1": [0]}}}
    (tmp_path / "human_zh.json").write_text(json.dumps(asked), encoding="utf-8")
    suite = build_suite(
        SuiteConfig(kind="oneig", file=str(tmp_path / "a.csv"), questions=str(tmp_path)), seed=0
    )
    assert suite.prompts[0].text == "一个人" and suite.questions(0)[0].text.startswith("A?")


def test_a_copy_in_another_encoding_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.jsonl"
    entry = {"prompt": "the café", "text": ["café"], "prompt_id": 3}
    file.write_bytes(json.dumps(entry, ensure_ascii=False).encode("cp1252"))
    suite = build_suite(SuiteConfig(kind="longtext", file=str(file)), seed=0)
    assert suite.prompts[0].text == "the café"
    assert f"{file}: text that is no UTF-8, read as Windows-1252" in caplog.text
