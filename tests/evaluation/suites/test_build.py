"""Each kind of suite from a made copy, and refusing the copies of others."""

import json
from pathlib import Path

import pytest

from diffmoe_scale.config.evaluation import SuiteConfig, SuiteKind
from diffmoe_scale.evaluation.suites.build import build_suite
from tests.evaluation.suites.copies import BENCHMARKS, KINDS, draw, make_suite, tree, write_copy


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_has_a_file_of_its_own(kind: SuiteKind, tmp_path: Path) -> None:
    suite = make_suite(kind, tmp_path)
    files = [suite.file_of(place) for place in range(suite.count)]
    assert len(set(files)) == suite.count == len(suite.prompts) * suite.copies > 0
    assert suite.kind == kind and suite.read_results(tmp_path) is None
    draw(suite, tmp_path / "job")
    suite.export(tmp_path / "job" / "pictures")
    there = tree(tmp_path / "job")
    suite.export(tmp_path / "job" / "pictures")
    assert tree(tmp_path / "job") == there


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_prompts_are_spread_and_have_another_fingerprint(kind: SuiteKind, tmp_path: Path) -> None:
    whole, half = make_suite(kind, tmp_path / "a"), make_suite(kind, tmp_path / "b", prompts=1)
    assert half.count == whole.copies and half.prompts[0] == whole.prompts[0]
    assert half.fingerprint != whole.fingerprint == make_suite(kind, tmp_path / "c").fingerprint


def test_labels_are_all_classes_or_some_evenly() -> None:
    suite = build_suite(SuiteConfig(kind="labels", classes=10, pictures=5), seed=0)
    assert (suite.count, suite.prompt_of(49).text) == (50, "9")
    few = build_suite(SuiteConfig(kind="labels", classes=10, prompts=3), seed=0)
    assert [prompt.text for prompt in few.prompts] == ["0", "3", "6"]
    for wrong in ({"kind": "labels"}, {"kind": "scenes", "classes": 3}):
        with pytest.raises(ValueError, match=r"suites\.N\.classes"):
            SuiteConfig(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("kind", BENCHMARKS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_of_another_benchmark_is_named(kind: SuiteKind, other: SuiteKind, tmp_path: Path) -> None:
    if kind == other or (kind, other) == ("t2i_compbench", "prompts"):
        return  # both are plain lines
    file = write_copy(other, tmp_path)["file"]
    with pytest.raises(ValueError, match="expected") as error:
        build_suite(SuiteConfig(kind=kind, file=file), seed=0)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\0\xff" * 9, b"null\n", b'{"prompt": 3, "tag": "a"}\n'])
def test_damaged_files_are_a_sentence(kind: SuiteKind, content: bytes, tmp_path: Path) -> None:
    if kind in ("prompts", "t2i_compbench") and content:
        return  # any line is a prompt
    file = tmp_path / "file.jsonl"
    file.write_bytes(content)
    if kind == "t2i_compbench":
        assert not build_suite(SuiteConfig(kind=kind, file=str(file)), seed=0).prompts
        return
    with pytest.raises(ValueError, match=r"file\.jsonl"):
        build_suite(SuiteConfig(kind=kind, file=str(file)), seed=0)


def test_a_missing_copy_says_whose_file_it_is(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not exist; expected GenEval .* it is not part of this package"
    ):
        build_suite(SuiteConfig(kind="geneval", file=str(tmp_path / "none.jsonl")), seed=0)


def test_fewer_prompts_are_of_all_groups(tmp_path: Path) -> None:
    suite = make_suite("geneval", tmp_path, prompts=2)
    assert [prompt.text for prompt in suite.prompts] == ["a photo of a bench", "a photo of two cows"]
    (tmp_path / "long.txt").write_text("".join(f"{line}\n" for line in range(10)), encoding="utf-8")
    found = build_suite(SuiteConfig(kind="prompts", file=str(tmp_path / "long.txt"), prompts=4), seed=0)
    assert [prompt.text for prompt in found.prompts] == ["0", "2", "5", "7"]


@pytest.mark.parametrize("number", ["../../../../escaped", "/000", "000", "x" * 300])
def test_names_of_pictures_that_leave_the_folder_or_are_taken_are_refused(
    number: str, tmp_path: Path
) -> None:
    """A table of someone else's says what pictures are called."""
    settings = write_copy("oneig", tmp_path)
    with Path(settings["file"]).open("a", encoding="utf-8") as file:
        file.write(f'Anime_Stylization,{number},"1girl","T, P",long,\n')
    with pytest.raises(ValueError, match=r"OneIG-Bench.csv: a picture"):
        build_suite(SuiteConfig(kind="oneig", file=settings["file"]), seed=0)


@pytest.mark.parametrize(
    ("skills", "pairs"),
    [
        (["count"], [["How many toys?", ""]]),
        ([["count"]], [["How many toys?", "two"]]),
    ],
)
def test_questions_of_geneval2_that_nobody_can_answer_are_refused(
    skills: list[object], pairs: list[object], tmp_path: Path
) -> None:
    """Before pictures are drawn, and not when they are judged."""
    entry = {"prompt": "toys", "atom_count": 1, "skills": skills, "vqa_list": pairs}
    (tmp_path / "data.jsonl").write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data.jsonl entry 1: vqa_list"):
        build_suite(SuiteConfig(kind="geneval2", file=str(tmp_path / "data.jsonl")), seed=0)


def test_a_question_of_dpg_bench_that_comes_twice_is_refused(tmp_path: Path) -> None:
    settings = write_copy("dpg_bench", tmp_path)
    with Path(settings["questions"]).open("a", encoding="utf-8") as file:
        file.write("0,a red bus,,2,0,entity,whole,entity - whole (road),Is there a road?\n")
    with pytest.raises(ValueError, match=r"dpg_bench.csv line 6 .*2.* twice"):
        build_suite(SuiteConfig(**settings), seed=0)
