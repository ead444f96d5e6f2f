"""What goes wrong with an evaluation is a sentence, and nothing is lost."""

import json
import shutil
from pathlib import Path
from typing import Any  # settings of any type

import pytest
from PIL import Image

from diffmoe_scale import evaluate as command
from diffmoe_scale.config.load import dump_config
from diffmoe_scale.evaluation.harness import run as harness
from diffmoe_scale.evaluation.harness.records import RecordWriter, read_records
from diffmoe_scale.evaluation.harness.result import read_result, write_results
from diffmoe_scale.evaluation.harness.targets import find_targets, unfinished_runs
from diffmoe_scale.sampling.loading import Pipeline, load_pipeline
from tests.evaluation.harness.runs import STEPS, evaluate, train, write_config
from tests.ranks import run_alone, run_on_ranks
from tests.sampling.models import config as class_config
from tests.test_sample import call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_on_ranks(train, 1, str(folder))
    return folder / "run"


def lose_one(config: Path, checkpoint: str) -> tuple[list[int], list[str], int]:
    """The steps of results where training removes a checkpoint just before it is loaded."""

    def load(path: Path, **options: Any) -> Pipeline:
        if str(path) == checkpoint:
            shutil.rmtree(path)
        return load_pipeline(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "load_pipeline", load)
        _, results, gone = evaluate(config)
    again, _, later = evaluate(config)
    return [result.step for result in results], gone, len(again) + len(later)


def test_a_checkpoint_that_is_removed_meanwhile_costs_only_itself(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    lost = copy / "checkpoints/step_00000004"
    steps, gone, later = run_alone(lose_one, write_config(tmp_path, copy, sampling={}), str(lost))
    assert steps == [2, 6] and later == 0
    assert gone == [f"{lost} was removed before it was evaluated; what was drawn of it is kept"]


def watch(config: Path, run: str, rest: str) -> tuple[list[int], int]:
    """Where a training writes a checkpoint while others are evaluated; how often was waited."""
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) < 5
        if len(waits) == 2:
            shutil.move(rest, f"{run}/checkpoints")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.time, "sleep", sleep)
        _, results, _ = evaluate(config, watch=True)
    return [result.step for result in results], len(waits)


def test_watching_evaluates_new_checkpoints_until_the_run_has_ended(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    rest = tmp_path / "step_00000006"
    shutil.move(copy / "checkpoints/step_00000006", rest)
    steps, waits = run_alone(watch, write_config(tmp_path, copy, sampling={}), str(copy), str(rest))
    assert steps == list(STEPS) and waits == 2


def test_checkpoints_that_are_none_are_named(run: Path, tmp_path: Path) -> None:
    for pattern, message in {
        str(tmp_path / "none"): "does not exist; give run directories",
        str(tmp_path): "is neither a run nor a complete checkpoint",
        str(tmp_path / "*.x"): "matches nothing",
    }.items():
        with pytest.raises(ValueError, match=f"evaluation.checkpoints: .*{message}"):
            find_targets([pattern], ["ema"], may_be_empty=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.yaml", empty)
    with pytest.raises(ValueError, match="holds no complete checkpoint; train first"):
        find_targets([str(empty)], ["ema"], may_be_empty=False)
    assert not find_targets([str(empty)], ["ema"], may_be_empty=True)
    assert unfinished_runs([str(run), str(empty)]) == [empty]
    found = find_targets([f"{run}/checkpoints/step_*[24]"], ["ema", "master"], may_be_empty=False)
    assert [(target.step, target.weights) for target in found] == [
        (2, "ema"), (2, "master"), (4, "ema"), (4, "master")]  # fmt: skip
    assert len({target.identity for target in found}) == 4


def commands(*words: str) -> list[tuple[int, str]]:
    return call(command.main, [list(words)])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sampling": {"sampler": "ddim"}}, "cannot be sampled so: sampling.sampler is 'ddim'"),
        ({"sampling": {"capacity": 1.0, "selection": "static"}}, "cannot be sampled so: sampling.capacity"),
        ({"sampling": {"steps": ["many"]}}, "sampling.steps is 'many'"),
        ({"metrics": {"names": ["fidd"]}}, "'fidd' is no metric"),
        ({"metrics": {"names": ["fid"]}}, "metric fid needs metrics.inception"),
        (
            {"metrics": {"names": ["is:timm"], "timm_architecture": "resnet18", "timm_weights": "/none"}},
            "/none, which is no file",
        ),
        ({"suites": [{"kind": "scenes"}, {"kind": "scenes"}]}, "two suites are called 'scenes'"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_anything_is_drawn(
    run: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    ((code, told),) = run_alone(commands, "--config", str(write_config(tmp_path, run, **sections)))
    assert code == 2 and message in told and not list((tmp_path / "out").glob("*/drawn*"))


def test_pictures_that_metrics_cannot_take_are_said_before_drawing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a cat\n", encoding="utf-8")
    (tmp_path / "reference").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "reference/0.png")
    network = {"timm_architecture": "resnet18", "timm_weights": "/none"}
    one = [{"kind": "prompts", "file": str(tmp_path / "one.txt"), "pictures": 1}]
    for sections, message in (
        ({"metrics": {"names": ["is:timm"], **network}, "suites": one}, "'one' has a single picture"),
        (
            {"metrics": {"names": ["fd:timm"], "reference": str(tmp_path / "reference"), **network}},
            "the samples have 32 x 32 pixels",
        ),
    ):
        ((code, told),) = run_alone(commands, "--config", str(write_config(tmp_path, run, **sections)))
        assert code == 2 and message in told, told
        assert not list((tmp_path / "out").glob("*/drawn*"))


def test_wrong_use_of_the_command_is_a_sentence(run: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, run))
    for words, message in {
        ("--config", config, "--part", "17/16"): "--part is '17/16'; expected NUMBER/COUNT",
        ("--config", config, "--part", "0/4"): "--part is '0/4'",
        ("--config", config, "--prompts", "3"): "--prompts goes with --checkpoint; set it in the file",
        ("--checkpoint", str(run), "--watch"): "--watch goes with --config",
        ("--config", config, f"evaluation.output={config}/x"): "evaluation.output: ",
        ("--config", config, "suites.kind=scenes"): "suites",
    }.items():
        ((code, told),) = commands(*words)
        assert code == 2 and message in told, told
        assert "Traceback" not in told


def test_a_model_of_classes_takes_labels_and_others_captions(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").write_text(dump_config(class_config()), encoding="utf-8")
    labels = [{"kind": "labels", "classes": 4}]
    for model, suites, message in (
        (copy, [{"kind": "scenes"}], "give it a suite of kind 'labels'"),
        (copy, labels, "suite 'labels' has 4 classes, but"),
        (run, labels, "is a model of captions, and suite 'labels' holds labels"),
    ):
        config = write_config(tmp_path, model, sampling={}, suites=suites)
        ((code, told),) = run_alone(commands, "--config", str(config))
        assert code == 2 and message in told, told


def test_a_capacity_without_captions_is_said_before_drawing(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "config.yaml").read_text(encoding="utf-8").replace(str(run.parent), "/no/shards")
    (copy / "config.yaml").write_text(text, encoding="utf-8")
    config = write_config(tmp_path, copy, sampling={"capacity": [0, 1.0], "selection": "threshold"})
    ((code, told),) = run_alone(commands, "--config", str(config))
    assert code == 2 and "sampling.capacity needs prompts to calibrate with" in told, told
    assert not list((tmp_path / "out").glob("*/drawn*"))


def changed_pictures(config: Path) -> list[str]:
    """What is said of a picture that was changed, was damaged, and drawn anew, by an exact rule alone."""
    _, results, _ = evaluate(config)
    picture = config.parent / "out" / results[0].folder / "pictures" / results[0].files[0]
    whole, told = picture.read_bytes(), []
    for data in (whole[:-9], whole[:-9] + bytes(9)):
        picture.write_bytes(data)
        try:
            evaluate(config)
        except ValueError as error:
            told.append(str(error))
    picture.unlink()
    drawn, _, _ = evaluate(config)
    return [*told, f"{len(drawn)} drawn", str(picture.read_bytes() == whole)]


def test_a_changed_picture_is_noticed_also_where_nothing_reads_it(run: Path, tmp_path: Path) -> None:
    first, second, *rest = run_alone(changed_pictures, write_config(tmp_path, run, sampling={}))
    assert "is not the picture that was drawn; remove it and run again" in first and first == second
    assert rest == ["1 drawn", "True"]


def test_results_of_another_folder_and_torn_ones_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    for text in ("", "{}", "[" * 9999, json.dumps({"fingerprint": 3})):
        (folder / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"result\.json is no result of an evaluation"):
            write_results(tmp_path)


def stolen(config: Path) -> str:
    _, results, _ = evaluate(config)
    folder = config.parent / "out" / results[0].folder
    other = config.parent / "out" / results[1].folder
    shutil.copy(folder / "result.json", other / "result.json")
    try:
        read_result(other / "result.json")
    except ValueError as error:
        return str(error)
    return ""


def test_a_result_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    assert "of other weights or settings than its folder" in run_alone(stolen, write_config(tmp_path, run))


def test_a_torn_line_of_records_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "drawn-1of1-0.jsonl"
    with RecordWriter(path) as records:
        records.write({"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2, "pla')
    with RecordWriter(path) as records:
        records.write({"a": 3})
    assert list(read_records(tmp_path, "drawn")) == [{"a": 1}, {"a": 3}]
