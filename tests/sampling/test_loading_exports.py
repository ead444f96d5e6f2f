"""The model of an export draws as that of its run."""

from pathlib import Path

import pytest
import torch

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.convert.export import select_weights, write_export
from diffmoe_scale.sampling.loading import directory_of, load_pipeline
from tests.convert.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "run"
    make_run(folder, steps=[10])
    return folder


@pytest.mark.parametrize("name", ["a.safetensors", "a"])
@pytest.mark.parametrize("weights", ["ema", "master"])
def test_an_export_gives_the_networks_of_its_run(run: Path, tmp_path: Path, name: str, weights: str) -> None:
    write_export(open_weights(run), tmp_path / name)
    got, expected = (load_pipeline(path, weights=weights) for path in (tmp_path / name, run))
    assert (got.step, got.checkpoint) == (10, tmp_path / name)
    assert got.directory.path == tmp_path / "a"
    state = expected.networks.denoiser.state_dict()
    for key, tensor in got.networks.denoiser.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_weights_that_an_export_does_not_hold_are_named(run: Path, tmp_path: Path) -> None:
    write_export(select_weights(open_weights(run), "master"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"weights are 'ema', but .* holds master; give --weights master"):
        load_pipeline(tmp_path / "a")


def test_settings_that_make_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    write_export(open_weights(run), tmp_path / "a")
    with pytest.raises(ValueError, match=r"moe.gate was 'softmax', is 'sigmoid'"):
        load_pipeline(tmp_path / "a", settings=["moe.gate=sigmoid"])


def test_a_command_in_an_export_is_not_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "data.train=['pipe:touch x']", steps=[10])
    write_export(open_weights(tmp_path / "run"), tmp_path / "a")
    (pattern,) = load_pipeline(tmp_path / "a").config.data.train
    assert isinstance(pattern, str) and pattern != "pipe:touch x"
    assert open_weights(tmp_path / "a").config.data.train == ("pipe:touch x",)


def test_a_run_may_lie_in_a_folder_named_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "demo"
    make_run(run, steps=[10])
    newest = run / "checkpoints" / "step_00000010"
    assert open_weights(run).path == open_weights(newest).path == newest
    assert directory_of(run) == directory_of(newest) == RunDirectory(run)
