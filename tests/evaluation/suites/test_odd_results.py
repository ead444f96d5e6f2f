"""Scores and results of benchmarks where something is missing, doubled or of another kind."""

import csv
import io
import json
from pathlib import Path

import pytest

from diffmoe_scale.config.evaluation import SuiteConfig, SuiteKind
from diffmoe_scale.evaluation.suites.build import build_suite
from diffmoe_scale.evaluation.suites.dpg_bench import is_yes
from diffmoe_scale.evaluation.suites.geneval2 import YES, right_answers
from diffmoe_scale.evaluation.suites.suite import Answer
from tests.evaluation.suites.copies import DPG, draw, lines_of, make_suite, values, write_copy


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("prompts", "plain"),
        ("t2i_compbench", "t2i_compbench color_val"),
        ("oneig", "OneIG-Bench"),
        ("longtext", "longtext longtext"),
        ("geneval", "geneval"),
    ],
)
def test_a_suite_is_called_by_its_file_where_a_benchmark_has_several(
    kind: SuiteKind, name: str, tmp_path: Path
) -> None:
    settings = write_copy(kind, tmp_path)
    assert build_suite(SuiteConfig(**settings), seed=0).name == name
    assert build_suite(SuiteConfig(**settings, name="mine"), seed=0).name == "mine"


def test_prompts_of_scenes_are_chosen_by_the_seed() -> None:
    first, again, other = (
        [prompt.text for prompt in build_suite(SuiteConfig(kind="scenes", prompts=3), seed=seed).prompts]
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes", True), (" yes. ", True), ("YES", True), ("no", False), ("yes, but no", False), ("", False)],
)
def test_an_answer_is_yes_alone(text: str, expected: bool) -> None:
    assert is_yes(Answer(text)) == expected


def dpg_with(folder: Path, dependency: str) -> None:
    """The third question about prompt 0 depends on these."""
    rows = list(csv.reader(io.StringIO(DPG)))
    rows[3][4] = dependency
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (folder / "dpg_bench.csv").write_text(text.getvalue(), encoding="utf-8")


@pytest.mark.parametrize(("second", "third"), [("yes", 1), ("no", 0)])
def test_a_question_of_two_parents_counts_if_both_are_answered_with_yes(
    second: str, third: int, tmp_path: Path
) -> None:
    settings = write_copy("dpg_bench", tmp_path)
    dpg_with(tmp_path, "1, 2")
    suite = build_suite(SuiteConfig(**settings), seed=0)
    answers = {"1": Answer("yes"), "2": Answer(second), "3": Answer("yes")}
    assert suite.score_answers(0, answers).value == pytest.approx((1 + (second == "yes") + third) / 3)


def test_a_folder_of_dpg_prompts_is_read_in_order_and_whole(tmp_path: Path) -> None:
    settings = write_copy("dpg_bench", tmp_path)
    folder = Path(settings["file"])
    for name in ("b", "a", "c"):
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    without = {**settings, "questions": ""}
    stems = [prompt.metadata["stem"] for prompt in build_suite(SuiteConfig(**without), seed=0).prompts]
    assert stems == ["0", "a", "b", "c", "partiprompts1"]
    with pytest.raises(ValueError, match="asks nothing about a; expected the table of these prompts"):
        build_suite(SuiteConfig(**settings), seed=0)
    (folder / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt is empty; expected a prompt of DPG-Bench"):
        build_suite(SuiteConfig(**without), seed=0)
    with pytest.raises(ValueError, match=r"pictures is 5; expected 1 to 4, the tiles of a picture"):
        build_suite(SuiteConfig(**without, pictures=5), seed=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["job/grids/0.png, 1.0, 1.0, 1.0"], "expected a picture of this suite with 4 scores and their mean"),
        (["job/grids/0.png, 1.0, 1.0, 1.0, 1.0, 1.0"], "lacks the results of 4 of 8 pictures"),
    ],
)
def test_dpg_results_are_of_all_pictures(lines: list[str], message: str, tmp_path: Path) -> None:
    suite, job = make_suite("dpg_bench", tmp_path), tmp_path / "job"
    job.mkdir()
    (job / "dpg_results.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        suite.read_results(job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colors"}, "results of another file of prompts"),
        ({"filename": "job\\pictures\\00000\\samples\\0000.png"}, ""),
        ({"filename": "job/pictures/00003/samples/0000.png"}, "which was not drawn"),
    ],
)
def test_geneval_results_are_of_the_same_prompt_and_tag(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    suite, job = make_suite("geneval", tmp_path, pictures=1), tmp_path / "job"
    job.mkdir()
    entries = [
        {
            "filename": f"job/pictures/{suite.file_of(place)}",
            "tag": suite.prompt_of(place).group,
            "prompt": suite.prompt_of(place).text,
            "correct": True,
        }
        for place in range(suite.count)
    ]
    (job / "geneval_results.jsonl").write_text(lines_of([entries[0] | change, *entries[1:]]), "utf-8")
    if not message:
        assert values(suite.read_results(job)) == [1.0] * 3
        return
    with pytest.raises(ValueError, match=message):
        suite.read_results(job)


def test_geneval2_takes_the_first_picture_of_a_prompt_and_no_answer_as_0(tmp_path: Path) -> None:
    suite, job = make_suite("geneval2", tmp_path, pictures=2), tmp_path / "job"
    draw(suite, job)
    suite.export(job / "pictures")
    paths = json.loads((job / "image_paths.json").read_text(encoding="utf-8"))
    assert [Path(path).name for path in paths.values()] == ["000000.png", "000002.png"]
    answers = {"0": Answer("2", None), "1": Answer("Yes", 1.0), "2": Answer("Yes", 1.0)}
    assert suite.score_answers(0, answers).value == 0
    (job / "score_lists.json").write_text("[[0.5, 0.25, 1.0], [0.0, 1.0]]", encoding="utf-8")
    with pytest.raises(ValueError, match="is about one picture a prompt, but 2 were drawn; use a judge"):
        suite.read_results(job)
    one = make_suite("geneval2", tmp_path)
    (job / "score_lists.json").write_text("[[0.5, 0.25], [0.0, 1.0]]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompt 0 has .*; expected 3 scores: results of other prompts"):
        one.read_results(job)


def test_geneval2_paths_are_of_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_suite("geneval2", tmp_path)
    monkeypatch.chdir(tmp_path)
    draw(suite, Path("job"))
    suite.export(Path("job/pictures"))
    paths = json.loads(Path("job/image_paths.json").read_text(encoding="utf-8"))
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths.values())


def test_right_answers_of_geneval2() -> None:
    assert right_answers("Is the pig green?", "Yes") == YES
    assert right_answers("How many pigs?", "ten")[4:] == ("10", " 10")
    assert right_answers("How many pigs?", "many") == ("many", "Many", " many", " Many", "other", " other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": ["count"]}, "vqa_list is no list of .* with as many skills"),
        ({"vqa_list": []}, "vqa_list is no list of"),
        ({}, "asks for a prompt twice"),
    ],
)
def test_geneval2_entries_have_a_skill_for_each_question(
    change: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    entry = {"prompt": "p", "atom_count": 1, "skills": ["a", "b"], "vqa_list": [["q", "Yes"], ["r", "Yes"]]}
    (tmp_path / "a.jsonl").write_text(lines_of([entry, entry | change]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        build_suite(SuiteConfig(kind="geneval2", file=str(tmp_path / "a.jsonl")), seed=0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question_id": True, "answer": "1"}, "expected question_id and answer"),
        ({"question_id": -1, "answer": "1"}, "about picture -1, but 20 were drawn"),
        ({"question_id": 0, "answer": "1"}, "lacks the results of 19 of 20 pictures"),
    ],
)
def test_compbench_results_are_of_all_pictures(
    entry: dict[str, object], message: str, tmp_path: Path
) -> None:
    suite, folder = make_suite("t2i_compbench", tmp_path), tmp_path / "job/pictures/annotation_clip"
    folder.mkdir(parents=True)
    (folder / "vqa_result.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        suite.read_results(tmp_path / "job")


def test_the_result_that_combines_others_counts_in_compbench(tmp_path: Path) -> None:
    suite = make_suite("t2i_compbench", tmp_path, pictures=1)
    for name, score in (("annotation_blip", "0.25"), ("annotation_3_in_1", "0.75")):
        folder = tmp_path / "job/pictures" / name
        folder.mkdir(parents=True)
        entries = [{"question_id": place, "answer": score} for place in range(suite.count)]
        (folder / "vqa_result.json").write_text(json.dumps(entries), encoding="utf-8")
    assert values(suite.read_results(tmp_path / "job")) == [0.75] * 2


@pytest.mark.parametrize(("column", "value"), [("seed", "3"), ("negative_prompt", "blur")])
def test_prompts_of_an_evaluation_have_no_settings_of_their_own(
    column: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,{column}\na cat,{value}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompt 1 of .*a\.csv has a seed or a negative prompt"):
        build_suite(SuiteConfig(kind="prompts", file=str(path)), seed=0)


def test_pictures_of_a_prompt_and_what_is_asked_of_them_decide_the_fingerprint(tmp_path: Path) -> None:
    settings = write_copy("prompts", tmp_path)
    one, two = (build_suite(SuiteConfig(**settings, pictures=count), seed=0) for count in (1, 2))
    assert (one.count, two.count) == (2, 4) and one.fingerprint != two.fingerprint
    settings = write_copy("geneval2", tmp_path)
    first = build_suite(SuiteConfig(**settings), seed=0).fingerprint
    text = Path(settings["file"]).read_text(encoding="utf-8")
    Path(settings["file"]).write_text(text.replace("green?", "blue?"), encoding="utf-8")
    assert build_suite(SuiteConfig(**settings), seed=0).fingerprint != first


def test_pictures_of_scenes_have_the_noise_of_their_place_in_their_suite() -> None:
    """Two pictures a prompt, three prompts in each of six suites: the noise of each begins at 0."""
    suite = build_suite(SuiteConfig(kind="scenes", prompts=3, pictures=2), seed=0)
    assert [suite.noise_of(place) for place in range(suite.count)] == list(range(6)) * 6
    assert suite.means_of_groups
