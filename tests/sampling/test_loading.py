import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling import loading
from diffmoe_scale.sampling.batch import generate_batches, number_requests
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.train import run as training
from diffmoe_scale.train import setup
from diffmoe_scale.train.engine import Engine
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import RankRun, Run, assemble, copy_state, text_settings, tiny_config

SETTINGS = ["run.steps=6", "checkpoint.every=3", "optimizer.ema_decay=0.5", "optimizer.learning_rate=1.0e-2"]
CAPTIONS = [f"caption {number}" for number in range(5)]


def train_and_keep(context: ParallelContext, settings: list[str]) -> RankRun:
    """The state of the engine that trained."""
    config = tiny_config([*settings, f"parallel.expert_parallel={context.expert_parallel}"])
    engines: list[Engine] = []

    def build_and_keep(*arguments: object) -> Engine:
        engines.append(Engine(*arguments))  # type: ignore[arg-type]  # what Engine is given
        return engines[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "Engine", build_and_keep)
        training.train(config, context, RunDirectory(Path(config.run.directory)))
    return RankRun(Run(losses=[0.0]), copy_state(engines[0]))


@dataclass(frozen=True)
class Trained:
    """A run whose experts were spread over two ranks, and the whole of their state at its end."""

    path: Path
    state: dict[str, np.ndarray]
    dtype: torch.dtype = torch.float32


def train_once(folder: Path, precision: str) -> Trained:
    settings = [*text_settings(folder), *SETTINGS, f"model.precision={precision}"]
    state = assemble(run_on_ranks(train_and_keep, 2, settings, expert_parallel=2)).state
    return Trained(folder / "run", state, torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_once(tmp_path_factory.mktemp("fp32"), "fp32")


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_once(tmp_path_factory.mktemp("bf16"), "bf16")


@pytest.fixture
def copy(fp32: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp32.path, tmp_path / "run"))


def load_families(path: Path) -> dict[str, tuple[torch.dtype, np.ndarray]]:
    """Weights as `ema/NAME` and `master/NAME`, thresholds as `buffer/NAME`: several models, one after another
    in one process."""
    found: dict[str, tuple[torch.dtype, np.ndarray]] = {}
    for family in ("ema", "master"):
        loaded = load_pipeline(path, weights=family)
        assert (loaded.step, loaded.checkpoint.name) == (6, "step_00000006")
        denoiser = loaded.networks.denoiser
        for kind, tensors in (
            (family, denoiser.canonical_parameters()),
            ("buffer", denoiser.canonical_buffers()),
        ):
            found |= {
                f"{kind}/{name}": (tensor.dtype, tensor.detach().double().flatten().numpy())
                for name, tensor in tensors.items()
            }
    return found


def assert_loaded(found: dict[str, tuple[torch.dtype, np.ndarray]], trained: Trained) -> None:
    assert found.keys() == {name for name in trained.state if not name.startswith("exp_avg")}
    for name, (dtype, values) in found.items():
        assert dtype == trained.dtype or name.startswith("buffer/"), name
        assert np.array_equal(values, torch.from_numpy(trained.state[name]).to(dtype).double().numpy()), name


def test_one_process_gets_the_weights_that_two_ranks_trained(fp32: Trained) -> None:
    assert_loaded(run_alone(load_families, fp32.path), fp32)
    assert any(
        np.abs(values - fp32.state[name.replace("ema/", "master/")]).max() > 1e-3
        for name, values in fp32.state.items()
        if name.startswith("ema/")
    )


def load_shared(context: ParallelContext, path: Path) -> dict[str, np.ndarray]:
    loaded = load_pipeline(path, settings=["parallel.expert_parallel=2"], context=context)
    tensors = loaded.networks.denoiser.canonical_parameters().items()
    return {f"ema/{name}": tensor.detach().double().flatten().numpy() for name, tensor in tensors}


def test_ranks_that_share_experts_each_get_their_own(fp32: Trained) -> None:
    parts = run_on_ranks(load_shared, 2, fp32.path, expert_parallel=2)
    first, second = ({name for name in part if ".experts." in name} for part in parts)
    assert len(first) == len(second) > 0 and not first & second
    assert parts[0].keys() | parts[1].keys() == {name for name in fp32.state if name.startswith("ema/")}
    for name, values in (parts[0] | parts[1]).items():
        assert np.array_equal(values, fp32.state[name].astype(np.float32).astype(np.float64)), name


def test_weights_of_a_bf16_run_are_rounded_from_its_fp32_ones_and_thresholds_are_not(bf16: Trained) -> None:
    assert_loaded(run_alone(load_families, bf16.path), bf16)


def step_of(path: Path) -> int:
    return load_pipeline(path, weights="ema").step


def test_folder_of_one_checkpoint_names_it(fp32: Trained) -> None:
    assert run_alone(step_of, fp32.path / "checkpoints" / "step_00000003") == 3


def step_beside(path: Path) -> int:
    os.chdir(path.parent)
    return step_of(Path(path.name))


def test_checkpoint_is_also_named_from_the_folder_of_checkpoints(fp32: Trained) -> None:
    assert run_alone(step_beside, fp32.path / "checkpoints" / "step_00000003") == 3


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as refused:
        load_pipeline(path, weights="ema")
    return str(refused.value)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    assert (
        refusal(path)
        == f"{path} is no run: {path / 'config.yaml'} does not exist; give a run directory or one of its "
        "checkpoints/step_N folders"
    )


def test_an_empty_config_of_a_run_is_named(copy: Path) -> None:
    (copy / "config.yaml").write_text("\n", encoding="utf-8")
    assert refusal(copy) == f"{copy / 'config.yaml'} is empty; restore it: it says what the weights are of"


def test_run_without_a_checkpoint_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    assert refusal(copy) == f"{copy / 'checkpoints'} holds no complete checkpoint; train first"


def test_unfinished_checkpoint_is_left_out_and_refused_by_name(copy: Path) -> None:
    newest = copy / "checkpoints" / "step_00000006"
    newest.rename(newest.with_suffix(".tmp"))
    assert run_alone(step_of, copy) == 3
    (copy / "checkpoints" / "step_00000003" / "manifest.json").unlink()
    assert "step_00000003 is no complete checkpoint: it has no file manifest.json" in refusal(
        copy / "checkpoints" / "step_00000003"
    )


def test_damaged_checkpoint_is_refused_with_its_files(copy: Path) -> None:
    path = copy / "checkpoints" / "step_00000006" / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = f"{path.parent} is damaged: __1_0.distcp has another check sum than when it was written; "
    assert refusal(copy) == f"{message}choose another of {copy / 'checkpoints'}"


def remove_then_read(run: Path, calls: list[str]) -> str:
    """Loads while the newest checkpoint is removed: after its manifest was read, or after its check sums."""
    newest = run / "checkpoints" / "step_00000006"

    def remove_first(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def replaced(*arguments: object, **more: object) -> object:
            if name in calls and newest.exists():
                newest.rename(newest.with_suffix(".tmp"))
            return function(*arguments, **more)

        return replaced

    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_manifest", "find_damage", "fill_tensors"):
            patch.setattr(loading, name, remove_first(name, getattr(loading, name)))
        try:
            return load_pipeline(run).checkpoint.name
        except ValueError as error:
            return str(error)


@pytest.mark.parametrize("call", ["read_manifest", "find_damage", "fill_tensors"])
def test_next_checkpoint_is_read_when_one_is_removed_while_it_is_read(copy: Path, call: str) -> None:
    assert run_alone(remove_then_read, copy, [call]) == "step_00000003"


def test_checkpoint_that_was_named_and_removed_is_not_called_damaged(copy: Path) -> None:
    named = copy / "checkpoints" / "step_00000006"
    shutil.rmtree(named)
    message = f"{named} is not there, or was removed while it was read; choose another of {named.parent}"
    assert run_alone(refusal, named) == message


def test_config_of_another_model_is_refused_with_the_setting(copy: Path) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("num_experts: 4", "num_experts: 2"))
    assert "Settings that differ: moe.num_experts was 4, is 2. Restore them" in run_alone(refusal, copy)


def draw_in_batches(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    networks = load_pipeline(path, weights="ema").networks
    answers = []
    for batch in (5, 2, 1):
        requests, loads = number_requests(CAPTIONS, seed=1), LoadByTime()
        parts = list(generate_batches(networks, requests, SamplingConfig(steps=3, batch=batch)))
        for part in parts:
            loads.merge(part.loads)
        images_BCHW = torch.cat([part.images_BCHW for part in parts])
        answers.append((images_BCHW.numpy(), loads.load_TLE.numpy()))
    return answers


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_pictures_and_loads_do_not_depend_on_how_many_are_drawn_at_once(
    request: pytest.FixtureRequest, precision: str, tolerance: float
) -> None:
    (images, loads), *others = run_alone(draw_in_batches, request.getfixturevalue(precision).path)
    assert images.shape == (5, 3, 16, 16) and np.abs(images[0] - images[1]).max() > 0.1
    for other_images, other_loads in others:
        # Products of matrices of another height round differently.
        np.testing.assert_allclose(other_images, images, rtol=0, atol=tolerance)
        np.testing.assert_allclose(other_loads, loads, rtol=0, atol=tolerance)
