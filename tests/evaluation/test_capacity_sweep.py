"""Sweeps of capacities: complete after each point, gone on with, and read back."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any  # arguments are passed on

import numpy as np
import pytest

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation import capacity_sweep as module
from diffmoe_scale.evaluation.capacity_sweep import Asked, OpenSweep, open_sweep
from diffmoe_scale.evaluation.sweep_prompts import Group
from diffmoe_scale.evaluation.sweep_results import read_sweep
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.scenes.suites import Prompt, build_suite
from tests.sampling.models import NUM_CLASSES, PLAIN, build, config, text_networks

ASKED = [Asked(0.0), Asked(0.8), Asked(1.3), Asked(1.3, "quantile")]
SAMPLING = replace(PLAIN, guidance=2.0, calibration_images=48)


def make_pipeline(folder: Path, **sections: Any) -> Pipeline:
    settings = config(sampling=SAMPLING, **sections)
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("weights")
    return Pipeline(build(settings), settings, RunDirectory(folder), checkpoint, 7)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return make_pipeline(tmp_path / "run")


def test_points_hold_what_was_asked_for_and_measured(pipeline: Pipeline) -> None:
    sweep = open_sweep(pipeline, ASKED, count=2, others=12, seed=0)
    sweep.measure(ASKED)
    points = {point.name: point for point in sweep.found.points}
    assert set(points) == {"as trained", "gamma 0.8", "gamma 1.3", "quantile 1.3"}
    capacities = [point.capacity for point in sweep.found.points]
    assert capacities == sorted(capacities)
    for name, point in points.items():
        if name != "as trained":
            assert point.capacity == pytest.approx(point.asked_for, abs=0.15)  # of twelve pictures
        assert point.pictures == 12 and point.calls == 8 and point.score is None and not point.scores
        assert set(point.profile.halves) == {"conditional", "unconditional"}
        assert [kind.kind for kind in point.profile.kinds] == [f"class {n}" for n in range(NUM_CLASSES)]
        assert len(point.profile.most) == 8 and point.profile.most[0][1] >= point.profile.most[7][1]
        assert point.profile.least[0][1] <= point.profile.most[0][1]
    assert points["gamma 1.3"].flops > points["gamma 0.8"].flops
    assert read_sweep(sweep.path) == sweep.found


def test_a_sweep_that_was_stopped_goes_on(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = module._measure
    measured: list[str] = []

    def stop_at_third(pipeline: Pipeline, one: Asked, groups: Any, **options: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(str(one))
        return measure(pipeline, one, groups, **options)

    monkeypatch.setattr(module, "_measure", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        open_sweep(pipeline, ASKED, count=2, others=4, seed=0).measure(ASKED)
    measured.insert(0, "stopped")
    again = open_sweep(pipeline, ASKED, count=2, others=4, seed=0)
    assert len(again.found.points) == 2
    again.measure(ASKED)
    assert measured[1:] == [str(one) for one in ASKED]
    whole = read_sweep(again.path)
    more = [*ASKED, Asked(1.0)]
    open_sweep(pipeline, more, count=2, others=4, seed=0).measure(more)
    assert measured[5:] == ["gamma 1"]
    assert [point for point in read_sweep(again.path).points if point.name != "gamma 1"] == whole.points


def test_other_ways_of_measuring_have_files_of_their_own(pipeline: Pipeline) -> None:
    other = replace(pipeline.config, sampling=replace(SAMPLING, steps=3))
    sweeps = [
        open_sweep(pipeline, [], count=2, others=4, seed=0),
        open_sweep(pipeline, [], count=2, others=5, seed=0),
        open_sweep(pipeline, [], count=2, others=4, seed=1),
        open_sweep(replace(pipeline, config=other), [], count=2, others=4, seed=0),
        open_sweep(replace(pipeline, weights="master"), [], count=2, others=4, seed=0),
    ]
    assert len({sweep.path for sweep in sweeps}) == 5


def test_a_capacity_without_thresholds_does_not_cost_the_others(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_selection = module.find_selection

    def refuse(pipeline: Pipeline, sampling: Any) -> Any:
        if sampling.capacity == 0.8:
            raise RunError("24 trials found no gamma for capacity 0.8")
        return find_selection(pipeline, sampling)

    monkeypatch.setattr(module, "find_selection", refuse)
    sweep = open_sweep(pipeline, ASKED[:3], count=2, others=4, seed=0)
    sweep.measure(ASKED[:3])
    assert [point.asked_for for point in sweep.found.points if point.asked_for] == [1.3]
    assert "no point gamma 0.8: 24 trials" in caplog.text


def test_scenes_are_scored_by_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = text_networks(tmp_path)
    pipeline = replace(make_pipeline(tmp_path / "run"), networks=networks)
    prompts = {name: build_suite(name, num_prompts=4, seed=0) for name in ("colors", "counting")}
    groups = [Group(name, [prompt.text for prompt in suite], suite) for name, suite in prompts.items()]

    def judge(images: Any, scenes: Any) -> list[bool]:
        assert len(images) == len(scenes)
        return [scene.metadata["tag"] == "colors" or number == 0 for number, scene in enumerate(scenes)]

    monkeypatch.setattr(module, "score_images", judge)
    sweep = OpenSweep(pipeline, groups, seed=0)
    sweep.measure([Asked(0.0)])
    (point,) = sweep.found.points
    assert point.scores == {"colors": 1.0, "counting": 0.25} and point.score == 0.625
    assert point.error == pytest.approx((0.25 * 0.75 / 4) ** 0.5 / 2)
    assert [kind.kind for kind in point.profile.kinds] == ["colors", "counting"]


class PixelMetrics:
    """The mean of all pixels, as a metric."""

    config = MetricsConfig()

    def start(self) -> "PixelMetrics":
        self.pictures: list[np.ndarray] = []
        self.captions: list[str] = []
        return self

    def update(self, pictures: np.ndarray, places: Sequence[int], captions: Sequence[str]) -> None:
        assert list(places) == list(range(len(self.captions), len(self.captions) + len(pictures)))
        self.pictures.append(pictures)
        self.captions += captions

    def values(self) -> list[SimpleNamespace]:
        assert self.captions == ["0", "1", "2"] * 2
        return [SimpleNamespace(name="pixels", value=float(np.concatenate(self.pictures).mean()))]


def test_metrics_are_of_captions_and_labels_and_not_of_scenes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score_images", lambda images, scenes: [True] * len(scenes))
    scenes = [Prompt("1", {}), Prompt("2", {})]
    groups = [Group("suite", [1, 2], scenes), Group("others", [0, 1, 2] * 2, [])]
    metrics: Any = PixelMetrics()
    sweep = OpenSweep(pipeline, groups, seed=0, metrics=metrics)
    sweep.measure([Asked(0.0)])
    (point,) = read_sweep(sweep.path).points
    assert 0 < point.metrics["pixels"] < 255 and point.score == 1 and point.pictures == 8
    assert sweep.path != OpenSweep(pipeline, groups, seed=0).path


def test_models_without_predictors_and_capacities_that_cannot_be_are_refused(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    dense = make_pipeline(tmp_path / "dense", moe={"num_experts": 0})
    with pytest.raises(ValueError, match="a model without capacity predictors"):
        open_sweep(dense, ASKED, count=2, others=4, seed=0)
    with pytest.raises(ValueError, match=r"sampling\.capacity is 9; expected below moe.num_experts"):
        open_sweep(pipeline, [Asked(9)], count=2, others=4, seed=0)


@pytest.mark.parametrize("change", ["", "[]", "{}", "kind", "number", "profile"])
def test_a_damaged_sweep_is_named(pipeline: Pipeline, change: str) -> None:
    sweep = open_sweep(pipeline, ASKED, count=2, others=4, seed=0)
    sweep.measure(ASKED[:1])
    tree = json.loads(sweep.path.read_text())
    match change:
        case "kind":
            tree["kind"] = "evaluation"
        case "number":
            tree["points"][0]["capacity"] = float("nan")
        case "profile":
            tree["points"][0]["profile"]["halves"] = 3
        case _:
            tree = None
    sweep.path.write_text(change if tree is None else json.dumps(tree))
    with pytest.raises(ValueError, match="holds no sweep of capacities"):
        open_sweep(pipeline, ASKED, count=2, others=4, seed=0)
