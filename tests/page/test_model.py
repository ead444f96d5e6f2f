"""Which model the page draws with, and what it says of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.page import model as module
from diffmoe_scale.page.model import Model, checkpoints_of, describe
from diffmoe_scale.sampling.loading import Pipeline
from tests.sampling.models import build, config


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A run with a checkpoint; what is loaded from it, the newest last: its path and weights."""
    loads: list[tuple[str, str]] = []
    networks = build(made := config())

    def load(path: Path, *, weights: str, settings: object) -> Pipeline:
        if not path.exists():
            raise ValueError(f"{path} is no run")
        loads.append((path.name, weights))
        folder = path / "checkpoints"
        newest = max(folder.iterdir()) if folder.is_dir() else path
        return Pipeline(networks, made, RunDirectory(path), newest, int(newest.name[5:]), weights)

    monkeypatch.setattr(module, "load_pipeline", load)
    monkeypatch.setattr(module, "complete_checkpoints", lambda folder: sorted(folder.iterdir()))
    (tmp_path / "run" / "checkpoints" / "step_00000002").mkdir(parents=True)
    return loads


def test_a_model_is_loaded_once_and_again_for_other_weights_or_another_checkpoint(
    loaded: list[tuple[str, str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = Model(run, weights="ema", settings=[], is_bound=False)
    assert model.get(str(run), "ema") == (model.first, False)
    step = str(run / "checkpoints" / "step_00000002")
    for checkpoint, weights in ((str(run), "raw"), (step, "raw"), (str(run), "ema")):
        assert model.get(checkpoint, weights)[1]
        assert not model.get(checkpoint, weights)[1]
    assert loaded == [("run", "ema"), ("run", "raw"), ("step_00000002", "raw"), ("run", "ema")]


def test_a_newer_checkpoint_and_one_that_is_gone_are_loaded_anew(
    loaded: list[tuple[str, str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = Model(run, weights="ema", settings=[], is_bound=False)
    (run / "checkpoints" / "step_00000004").mkdir()
    pipeline, is_new = model.get(str(run), "ema")
    assert is_new and pipeline.step == 4
    (run / "checkpoints" / "step_00000004").rmdir()
    pipeline, is_new = model.get(str(run), "ema")
    assert is_new and pipeline.step == 2
    step = run / "checkpoints" / "step_00000002"
    assert model.get(str(step), "ema")[1]
    step.rmdir()
    with pytest.raises(ValueError, match="is no run"):
        model.get(str(step), "ema")


def test_a_page_that_others_reach_loads_nothing_outside_of_its_run(
    loaded: list[tuple[str, str]], tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    (other / "checkpoints" / "step_00000002").mkdir(parents=True)
    (run / "link").symlink_to(other)
    bound = Model(run, weights="ema", settings=[], is_bound=True)
    for outside in (other, run / ".." / "other", run / "link"):
        with pytest.raises(ValueError, match="draws of its own run alone"):
            bound.get(str(outside), "ema")
    assert Model(run, weights="ema", settings=[], is_bound=False).get(str(other), "ema")[1]


def test_checkpoints_to_choose_from_are_the_runs_the_newest_first(
    loaded: list[tuple[str, str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    newest = run / "checkpoints" / "step_00000004"
    newest.mkdir()
    expected = [str(run), str(newest), str(run / "checkpoints" / "step_00000002")]
    assert checkpoints_of(run) == expected == checkpoints_of(newest)
    assert checkpoints_of(tmp_path / "export") == [str(tmp_path / "export")]


@pytest.mark.parametrize(
    ("sampling", "shown"),
    [
        (SamplingConfig(selection="static"), "static"),
        (SamplingConfig(capacity=0.5, calibration="quantile"), "quantile"),
        (SamplingConfig(capacity=0.5, calibration="gamma"), "gamma"),
    ],
)
def test_the_first_choice_of_experts_is_the_runs(
    sampling: SamplingConfig, shown: str, tmp_path: Path
) -> None:
    made = config(sampling=sampling)
    run = RunDirectory(tmp_path)
    pipeline = Pipeline(build(made), made, run, run.checkpoints / "step_00000003", 3)
    assert describe(pipeline)["experts"] == shown
    assert describe(pipeline)["num_classes"] == 3
    captioned = replace(made, model=replace(made.model, conditioning="text", num_classes=0))
    assert describe(replace(pipeline, config=captioned))["num_classes"] == 0


@pytest.mark.parametrize(
    ("router", "choices"),
    [
        ("diffmoe", ["threshold", "gamma", "quantile", "interval", "threshold_count", "static"]),
        ("expert_race", ["threshold", "gamma", "quantile", "interval", "static"]),
        ("expert_choice", []),
    ],
)
def test_a_router_offers_the_choices_that_it_has(router: str, choices: list[str], tmp_path: Path) -> None:
    run, diffmoe = RunDirectory(tmp_path), config(sampling=SamplingConfig(selection="static"))
    pipeline = Pipeline(build(diffmoe), diffmoe, run, run.checkpoints / "step_00000003", 3)
    made = replace(diffmoe, moe=replace(diffmoe.moe, router=router))  # type: ignore[arg-type]  # a Literal
    assert describe(replace(pipeline, config=made))["choices"] == choices
