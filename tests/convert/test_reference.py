"""Checkpoints of the DiffMoE reference: there and back to the bit, and ours has the recorded outputs."""

from pathlib import Path
from typing import Any  # options of any type

import numpy as np
import pytest
import torch

from diffmoe_scale.checkpoint.stored import StoredWeights, open_weights
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.verify import build_meta
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.euler import euler
from diffmoe_scale.sampling.guidance import guide
from diffmoe_scale.sampling.schedule import sampling_times
from tests.convert.reference import drawn_state, namespace, reference_state, training_file
from tests.model.models import CHANNELS, REFERENCE, assert_near

HEADS = ["model.heads=4"]
NULL_CLASS = 10
# The weight of the timestep's first layer is a rotation of theirs, rounded anew.
TOLERANCE = 3e-5


def to_ours(path: Path, target: Path, *settings: str, **options: Any) -> StoredWeights:
    convert(path, target, Options(settings=[*HEADS, *settings], **options))
    return open_weights(target)


def denoiser_of(stored: StoredWeights, family: str = "master") -> Denoiser:
    """The whole model in memory."""
    tensors = stored.family(family)
    denoiser = build_meta(stored.config, tensors).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in denoiser.canonical_parameters().items():
            parameter.copy_(tensors[name].read())
        for name, buffer in denoiser.canonical_buffers().items():
            buffer.copy_(stored.family("buffer")[name].read())
    return denoiser


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> StoredWeights:
    folder = tmp_path_factory.mktemp("reference")
    source = training_file(folder / "0000005.pt", reference_state(), arguments=namespace(config="a.yaml"))
    return to_ours(source, folder / "ours.safetensors")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


def test_there_and_back_is_the_same_to_the_bit(ours: StoredWeights, tmp_path: Path) -> None:
    convert(ours.path, tmp_path / "back.pt", Options())
    with torch.serialization.safe_globals([type(namespace())]):
        before = torch.load(ours.path.with_name("0000005.pt"), weights_only=True)
        after = torch.load(tmp_path / "back.pt", weights_only=True)
    assert after.keys() == {"model", "ema", "opt", "args"} and after["args"] == before["args"]
    for family in ("model", "ema"):
        assert after[family].keys() == before[family].keys()
        for name, tensor in before[family].items():
            got = after[family][name]
            assert got.dtype == tensor.dtype and torch.equal(got, tensor), (family, name)


def test_the_settings_are_the_reference_s(ours: StoredWeights) -> None:
    config = ours.config
    assert (config.model.depth, config.model.width, config.model.num_classes) == (4, 32, 10)
    assert (config.moe.num_experts, config.moe.every, config.moe.router) == (4, 2, "diffmoe")
    assert (config.moe.expert_width_ratio, config.moe.activation) == (4.0, "gelu")
    assert (config.diffusion.kind, config.diffusion.time_scale) == ("flow", 1.0)
    assert config.model.image_size == 8 * 8 and config.autoencoder.kind == "diffusers"


def test_ours_has_the_recorded_training_output(ours: StoredWeights, arrays: dict[str, np.ndarray]) -> None:
    denoiser = denoiser_of(ours)
    with torch.no_grad():
        prediction = denoiser(
            torch.from_numpy(arrays["z_t"]),
            1 - torch.from_numpy(arrays["t_reference"]),
            Condition(torch.from_numpy(arrays["class"])),
            Selection("train"),
        )
    expected = -torch.from_numpy(arrays["train/output"])[:, :CHANNELS]
    assert_near(prediction.value_BCHW, expected, tolerance=TOLERANCE)


@pytest.mark.parametrize("guidance", [1, 2])
def test_ours_draws_the_recorded_samples(
    ours: StoredWeights, arrays: dict[str, np.ndarray], guidance: int
) -> None:
    denoiser = denoiser_of(ours)
    for layer in denoiser.moe_layers():
        layer.router.predictor.expert_threshold_E.fill_(float(arrays["eval/threshold"]))
    labels_B = torch.from_numpy(arrays["sample/class"])
    objective = build_objective(ours.config.diffusion)

    def velocity(x_BCHW: torch.Tensor, t_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        time_B, condition = objective.embedding_time(t_B), Condition(labels_B)
        value: torch.Tensor = denoiser(x_BCHW, time_B, condition, Selection("threshold_count")).value_BCHW
        return value

    def predict(x_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        conditional = velocity(x_BCHW, t_B, labels_B)
        if guidance == 1:
            return conditional
        return guide(conditional, velocity(x_BCHW, t_B, torch.full_like(labels_B, NULL_CLASS)), guidance)

    with torch.no_grad():
        x0_BCHW = euler(predict, objective, torch.from_numpy(arrays["sample/z"]), sampling_times(10, end=0.0))
    assert_near(x0_BCHW, arrays[f"sample/euler10_cfg{guidance}"], tolerance=TOLERANCE)


VARIANTS: dict[str, dict[str, Any]] = {
    "diffmoe": {"router": "diffmoe"},
    "diffmoe with a shared expert": {"router": "diffmoe", "shared_width": 256},
    "diffmoe in every block": {"router": "diffmoe", "every": 1},
    "diffmoe of SwiGLU": {"router": "diffmoe", "is_gated": True},
    "expert choice": {"router": "expert_choice"},
    "expert choice of SwiGLU with a shared expert": {
        "router": "expert_choice",
        "is_gated": True,
        "shared_width": 128,
    },
    "token choice": {"router": "token_choice"},
    "dense": {},
    "dense of SwiGLU": {"is_gated": True},
    "dense without sigma": {"outputs": CHANNELS},
}


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sibling_answers_alike_and_comes_back(tmp_path: Path, variant: str, kind: str) -> None:
    """The conversion compares outputs, both ways, with the plain network."""
    state = drawn_state(**VARIANTS[variant])
    torch.save(state, tmp_path / "a.pt")
    settings = [f"diffusion.kind={kind}", "moe.threshold_decay=0.9"]
    if "without sigma" in variant and kind == "ddpm":
        with pytest.raises(ValueError, match="final_projection"):
            to_ours(tmp_path / "a.pt", tmp_path / "a.safetensors", *settings)
        return
    to_ours(tmp_path / "a.pt", tmp_path / "a.safetensors", *settings)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt", Options())
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_weights_that_were_changed_come_back_computed(tmp_path: Path) -> None:
    """After further training `source/` no longer fits: time is reflected back, and sigma is 0."""
    state = drawn_state("diffmoe")
    torch.save(state, tmp_path / "a.pt")
    stored = to_ours(tmp_path / "a.pt", tmp_path / "a.safetensors", dtype="bf16")
    convert(stored.path, tmp_path / "b.pt", Options())
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    weight = state["t_embedder.mlp.0.weight"]
    assert (back["t_embedder.mlp.0.weight"].float() - weight).abs().max() <= 2**-8 * weight.abs().max()
    assert back["blocks.1.mlp.expert_threshold"].dtype == torch.float32


def test_thresholds_are_those_of_the_weights_that_are_taken(ours: StoredWeights, tmp_path: Path) -> None:
    name = "transformer.blocks.1.feed_forward.router.predictor.expert_threshold_E"
    assert ours.family("buffer")[name].read().tolist() != [0, 0, 0, 0]
    stored = to_ours(ours.path.with_name("0000005.pt"), tmp_path / "a.safetensors", weights="ema")
    assert stored.families == ["ema", "buffer"]
    assert stored.family("buffer")[name].read().tolist() == [0, 0, 0, 0]
