"""Thresholds for `sampling.capacity`: found once, kept, and made anew when what they were made of changes."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type are passed on

import pytest
import torch

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling import thresholds as module
from diffmoe_scale.sampling.batch import Generated, generate_batch, number_requests
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.metadata import find_difference, picture_metadata
from diffmoe_scale.sampling.thresholds import check_calibration, find_selection
from tests.ranks import run_on_ranks
from tests.sampling.models import PLAIN, build, config

ASKED = replace(PLAIN, capacity=1.3, calibration_images=24)
QUANTILE = replace(ASKED, calibration="quantile")


def make_pipeline(folder: Path, context: ParallelContext | None = None) -> Pipeline:
    settings = config(sampling=ASKED)
    checkpoint = folder / "checkpoints" / "step_00000001"
    if not checkpoint.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text("weights of step 1")
    return Pipeline(build(settings), settings, RunDirectory(folder), checkpoint, 1, context=context)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return make_pipeline(tmp_path)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the calibrations that were made from now on."""
    made: list[str] = []
    calibrate = module.calibrate

    def count(*arguments: Any, kind: Any, **options: Any) -> Any:
        made.append(kind)
        return calibrate(*arguments, kind=kind, **options)

    monkeypatch.setattr(module, "calibrate", count)
    return made


def draw(pipeline: Pipeline, sampling: SamplingConfig, selection: Selection, *, seed: int) -> Generated:
    requests = number_requests([0, 1, 2] * 80, seed=seed)
    return generate_batch(pipeline.networks, requests, sampling, selection=selection)


@pytest.mark.parametrize("asked", [ASKED, QUANTILE], ids=["gamma", "quantile"])
@pytest.mark.parametrize("capacity", [0.5, 0.75, 1.0, 1.5])
def test_pictures_of_other_noise_have_the_capacity_asked_for(
    pipeline: Pipeline, asked: SamplingConfig, capacity: float
) -> None:
    sampling = replace(asked, capacity=capacity, calibration_images=240)
    selection = find_selection(pipeline, sampling)
    assert abs(draw(pipeline, sampling, selection, seed=5).loads.capacity - capacity) <= 0.03


def test_with_quantiles_all_experts_work_alike(pipeline: Pipeline) -> None:
    loads = {
        sampling.calibration: draw(pipeline, sampling, find_selection(pipeline, sampling), seed=5).loads
        for sampling in (ASKED, QUANTILE)
    }
    spread = {kind: float(load.load_TLE.mean(dim=0).std()) for kind, load in loads.items()}
    assert spread["quantile"] < 0.1 < spread["gamma"]


def test_a_calibration_is_kept_and_used_again(pipeline: Pipeline, searches: list[str]) -> None:
    for sampling in (ASKED, QUANTILE):
        first = find_selection(pipeline, sampling)
        again = find_selection(pipeline, replace(sampling, batch=7, batch_invariant=True))
        assert first.gamma == again.gamma
        assert first.gamma_by_block.keys() == again.gamma_by_block.keys()
        assert all(
            torch.equal(first.gamma_by_block[key], again.gamma_by_block[key]) for key in first.gamma_by_block
        )
    assert searches == ["gamma", "quantile"]
    paths = sorted(pipeline.directory.calibrations.iterdir())
    kept = json.loads(paths[0].read_text())
    assert [path.name.rsplit("-", 1)[0] for path in paths] == [
        "step_00000001-ema-gamma-1.3",
        "step_00000001-ema-quantile-1.3",
    ]
    assert abs(kept["capacity"] - 1.3) <= 0.01 and kept["images"] == 24
    assert kept["trials"][-1] == {"gamma": kept["gamma"], "capacity": kept["capacity"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [("checkpoint", "was made of another checkpoint"), ("prompts", "was made of another prompts")],
)
def test_a_calibration_of_another_origin_is_made_anew_and_said(
    pipeline: Pipeline, searches: list[str], caplog: pytest.LogCaptureFixture, change: str, said: str
) -> None:
    find_selection(pipeline, ASKED)
    if change == "checkpoint":
        (pipeline.checkpoint / "manifest.json").write_text("other weights of step 1")
    with caplog.at_level(logging.INFO):
        find_selection(pipeline, ASKED if change == "checkpoint" else replace(ASKED, calibration_images=25))
    assert len(searches) == 2 and said in caplog.text
    assert len(list(pipeline.directory.calibrations.iterdir())) == 1


def test_other_settings_and_weights_have_calibrations_of_their_own(
    pipeline: Pipeline, searches: list[str]
) -> None:
    ways = [
        (pipeline, ASKED),
        (pipeline, replace(ASKED, steps=3)),
        (pipeline, replace(ASKED, guidance=2.0)),
        (pipeline, replace(ASKED, capacity=1.4)),
        (replace(pipeline, weights="master"), ASKED),
    ]
    for model, sampling in ways * 2:
        find_selection(model, sampling)
    assert len(searches) == 5 == len(list(pipeline.directory.calibrations.iterdir()))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"made_of": {}}',
        '{"made_of": {}, "gamma": 2.0, "thresholds": {}}',
        '{"made_of": {}, "gamma": 0.5, "thresholds": {"1": ["x"]}}',
        {"gamma": 1.5},
        {"thresholds": {"x": [0.5]}},
        '{"made_of": 1, "gamma": 0.5, "thresholds": []}',
    ],
)
def test_a_damaged_calibration_is_made_anew(
    pipeline: Pipeline, searches: list[str], content: str | dict[str, object]
) -> None:
    sampling = replace(ASKED, calibration_images=4)
    find_selection(pipeline, sampling)
    (path,) = pipeline.directory.calibrations.iterdir()
    kept = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(kept | content))
    find_selection(pipeline, sampling)
    assert len(searches) == 2 and json.loads(path.read_text())["images"] == 4


def test_a_calibration_that_cannot_be_kept_is_used(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.directory.calibrations.write_text("a file where the folder should be")
    assert find_selection(pipeline, replace(ASKED, calibration_images=4)).rule == "interval"
    assert "cannot be kept" in caplog.text


def test_prompts_that_cannot_be_read_are_said_beforehand_unless_thresholds_are_kept(
    tmp_path: Path, searches: list[str]
) -> None:
    pipeline = make_pipeline(tmp_path)
    settings = replace(
        pipeline.config, model=replace(pipeline.config.model, conditioning="text", num_classes=0)
    )
    (tmp_path / "prompts.txt").write_text("0\n", encoding="utf-8")
    asked = replace(ASKED, calibration_prompts=str(tmp_path / "prompts.txt"), calibration_images=4)
    names: dict[str, Any] = {"checkpoint": pipeline.checkpoint, "weights": "ema"}
    check_calibration(settings, asked, **names)
    find_selection(pipeline, asked)
    (tmp_path / "prompts.txt").unlink()
    check_calibration(settings, asked, **names)  # of the thresholds that are kept
    check_calibration(settings, replace(asked, capacity=0.0), **names)
    with pytest.raises(ValueError, match=r"needs prompts to calibrate with, and they cannot be read"):
        check_calibration(settings, replace(asked, capacity=1.4), **names)
    (pipeline.checkpoint / "manifest.json").write_text("other weights of step 1")
    with pytest.raises(ValueError, match=r"needs prompts to calibrate with"):
        check_calibration(settings, asked, **names)
    with pytest.raises(ValueError, match=r"needs prompts to calibrate with"):
        find_selection(replace(pipeline, config=settings), asked)
    assert len(searches) == 1


def test_without_a_capacity_the_rule_is_that_of_the_settings(pipeline: Pipeline) -> None:
    assert find_selection(pipeline, PLAIN) == Selection("threshold")
    assert not pipeline.directory.calibrations.exists()


def test_pictures_of_a_capacity_need_its_thresholds(pipeline: Pipeline) -> None:
    with pytest.raises(
        ValueError, match=r"sampling\.capacity is 1\.3, but its thresholds were not looked for"
    ):
        generate_batch(pipeline.networks, number_requests([0], seed=0), ASKED)


def test_pictures_of_other_thresholds_were_drawn_otherwise(pipeline: Pipeline) -> None:
    (request,) = number_requests([0], seed=0)
    before, after = (
        picture_metadata(pipeline, request, Selection("interval", gamma=gamma)) for gamma in (0.3, 0.4)
    )
    assert find_difference(before, before) == ""
    assert find_difference(before, after) == "thresholds 'gamma 0.3' instead of 'gamma 0.4'"


def calibrate_on_ranks(context: ParallelContext, folder: Path) -> list[float]:
    pipeline = make_pipeline(folder, context)
    found = find_selection(pipeline, ASKED)
    quantiles = find_selection(pipeline, QUANTILE).gamma_by_block
    return [found.gamma, *(value for values in quantiles.values() for value in values.tolist())]


def test_ranks_calibrate_together(tmp_path: Path) -> None:
    (alone,) = run_on_ranks(calibrate_on_ranks, 1, tmp_path / "1")
    first, second = run_on_ranks(calibrate_on_ranks, 2, tmp_path / "2")
    assert first == second == pytest.approx(alone, abs=0.02)
