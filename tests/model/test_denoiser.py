import importlib.util
from typing import Any  # settings of any type are passed on to the config

import pytest
import torch

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.run import RunConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Condition, Denoiser, build_denoiser
from diffmoe_scale.moe.routing import Selection
from tests.model.models import CHANNELS, EXPERTS, SIZE, WIDTH, LetterEncoder, disturb, make_transformer
from tests.moe.layers import alone

CPU = torch.device("cpu")
CAPTIONS = ["red", "a blue square", ""]


def config(*, seed: int = 0, **model: Any) -> Config:
    sizes = {"channels": 3, "image_size": SIZE, "patch_size": 2, "depth": 2, "width": WIDTH}
    return Config(
        run=RunConfig(seed=seed), model=ModelConfig(**(sizes | model)), moe=MoEConfig(num_experts=EXPERTS)
    )


def build(config: Config, *, latent_channels: int = 3, encoder: LetterEncoder | None = None) -> Denoiser:
    return build_denoiser(
        config,
        text_encoder=encoder,
        latent_channels=latent_channels,
        latent_size=SIZE,
        output_channels=latent_channels,
        groups=alone(),
    )


def text_condition(captions: list[str] = CAPTIONS) -> Condition:
    return Condition(
        captions=captions,
        labels_B=torch.full((len(captions),), -1),
        dropped_B=torch.tensor([not caption for caption in captions]),
    )


def call(denoiser: Denoiser, condition: Condition, **arguments: Any) -> torch.Tensor:
    count = len(condition.captions)
    x_BCHW = torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    value_BCHW: torch.Tensor = denoiser(
        x_BCHW, torch.full((count,), 0.5), condition, Selection("threshold"), **arguments
    ).value_BCHW
    return value_BCHW


def gpu_only(backend: str) -> Any:  # pytest's ParameterSet is not public
    is_missing = not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None
    skip = pytest.mark.skipif(is_missing, reason="needs a CUDA device and Transformer Engine")
    return pytest.param(backend, marks=[pytest.mark.gpu, pytest.mark.te, skip])


@pytest.mark.parametrize("activation, biases", [("gelu", 2), ("swiglu", 0)])
@pytest.mark.parametrize("backend", ["loop", "grouped", gpu_only("transformer_engine")])
def test_state_names_and_shapes_are_the_same_for_every_backend(
    backend: str, activation: str, biases: int
) -> None:
    denoiser = Denoiser(make_transformer("class", backend=backend, activation=activation), None)
    shapes = {name: tuple(parameter.shape) for name, parameter in denoiser.canonical_parameters().items()}
    experts = {name: shape for name, shape in shapes.items() if ".experts." in name}
    inner = 8 * WIDTH if activation == "swiglu" else 4 * WIDTH
    sides = {"w_in": (inner, WIDTH), "w_out": (WIDTH, 4 * WIDTH)} | (
        {"b_in": (inner,), "b_out": (WIDTH,)} if biases else {}
    )
    assert experts == {
        f"transformer.blocks.{block}.feed_forward.experts.{expert}.{side}": shape
        for block in (1, 3)
        for expert in range(EXPERTS)
        for side, shape in sides.items()
    }
    specification = Denoiser(make_transformer("class", backend="loop", activation=activation), None)
    assert shapes == {
        name: tuple(parameter.shape) for name, parameter in specification.canonical_parameters().items()
    }
    assert {id(parameter) for parameter in denoiser.canonical_parameters().values()} == {
        id(parameter) for parameter in denoiser.parameters()
    }


def test_buffers_of_the_state_are_the_thresholds_and_their_counts() -> None:
    names = {
        f"transformer.blocks.{block}.feed_forward.router.predictor.{name}"
        for block in (1, 3)
        for name in ("expert_threshold_E", "threshold_steps")
    }
    assert set(Denoiser(make_transformer("class"), None).canonical_buffers()) == names


def test_only_a_trained_text_encoder_is_part_of_the_state() -> None:
    trained, frozen = (
        Denoiser(make_transformer("text"), LetterEncoder(is_trained=is_trained))
        for is_trained in (True, False)
    )
    assert set(trained.canonical_parameters()) - set(frozen.canonical_parameters()) == {
        "text_encoder.embedding.weight"
    }


@pytest.mark.parametrize("is_trained", [True, False])
def test_gradients_reach_a_trained_text_encoder_alone(is_trained: bool) -> None:
    encoder = LetterEncoder(is_trained=is_trained)
    denoiser = Denoiser(make_transformer("text"), encoder)
    disturb(denoiser)
    call(denoiser, text_condition()).square().sum().backward()
    assert (encoder.embedding.weight.grad is not None) == is_trained


def test_features_encoded_before_spare_encoding_anew() -> None:
    denoiser = Denoiser(make_transformer("text"), LetterEncoder(is_trained=True))
    disturb(denoiser)
    text, others = denoiser.encode(CAPTIONS, CPU), ["", "", ""]
    assert torch.equal(call(denoiser, text_condition(others), text=text), call(denoiser, text_condition()))
    assert not torch.equal(call(denoiser, text_condition(others)), call(denoiser, text_condition()))


def test_bf16_weights_take_the_features_of_a_frozen_fp32_encoder() -> None:
    encoder = LetterEncoder(is_trained=False)
    denoiser = Denoiser(make_transformer("text"), encoder).bfloat16()
    assert encoder.embedding.weight.dtype == torch.float32
    assert call(denoiser, text_condition()).isfinite().all()


def test_class_mode_needs_no_text_and_labels_matter() -> None:
    denoiser = Denoiser(make_transformer("class"), None)
    disturb(denoiser)
    labelled = Condition(
        captions=["", ""], labels_B=torch.tensor([3, 3]), dropped_B=torch.zeros(2, dtype=torch.bool)
    )
    unconditional = Condition.unconditional(2, num_classes=10, device=CPU)
    assert (
        denoiser.encode(["a"], CPU) is None
        and unconditional.labels_B.tolist() == [10, 10]
        and unconditional.dropped_B.all()
    )
    assert (call(denoiser, labelled) - call(denoiser, unconditional)).abs().max() > 1e-3


def test_weights_come_from_the_runs_seed_alone() -> None:
    encoder = LetterEncoder(is_trained=False)
    torch.manual_seed(1)
    first = build(config(), encoder=encoder)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = build(config(), encoder=encoder), build(config(seed=1), encoder=encoder)
    assert torch.equal(torch.get_rng_state(), state)
    names = first.canonical_parameters().keys()
    assert all(
        torch.equal(first.canonical_parameters()[name], second.canonical_parameters()[name]) for name in names
    )
    differing = {
        name
        for name in names
        if not torch.equal(first.canonical_parameters()[name], other.canonical_parameters()[name])
    }
    drawn = {name for name in names if first.canonical_parameters()[name].std() > 0}
    assert differing == drawn and len(drawn) > 20


def test_channels_that_the_autoencoder_does_not_give_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"model.channels is 3 but the autoencoder gives 4; set model.channels=4"
    ):
        build(config(), latent_channels=4)
