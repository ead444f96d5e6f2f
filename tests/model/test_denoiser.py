import importlib.util
from typing import Any  # settings of any type are passed on to the config

import pytest
import torch

from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.routing import Selection
from tests.model.models import CHANNELS, EXPERTS, SIZE, WIDTH, disturb, make_transformer, trained_encoder

CAPTIONS = ["red", "a blue square", ""]


def text_condition(captions: list[str] = CAPTIONS) -> Condition:
    """Ids for the encoder that is trained along."""
    return Condition(tokens_BL=trained_encoder().tokenize(captions))


def call(denoiser: Denoiser, condition: Condition) -> torch.Tensor:
    count = len(CAPTIONS)
    x_BCHW = torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    value_BCHW: torch.Tensor = denoiser(
        x_BCHW, torch.full((count,), 0.5), condition, Selection("threshold")
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


def test_the_text_encoder_that_is_trained_along_is_part_of_the_state() -> None:
    trained, frozen = (Denoiser(make_transformer("text"), encoder) for encoder in (trained_encoder(), None))
    added = set(trained.canonical_parameters()) - set(frozen.canonical_parameters())
    assert added == {f"text_encoder.{name}" for name, _ in trained_encoder().named_parameters()}


def test_gradients_reach_the_text_encoder_that_is_trained_along() -> None:
    denoiser = Denoiser(make_transformer("text"), trained_encoder())
    disturb(denoiser)
    call(denoiser, text_condition()).square().sum().backward()
    assert denoiser.text_encoder is not None
    assert all(parameter.grad is not None for parameter in denoiser.text_encoder.parameters())


def test_a_condition_encoded_before_gives_the_same_output() -> None:
    denoiser = Denoiser(make_transformer("text"), trained_encoder())
    disturb(denoiser)
    encoded = denoiser.encode(text_condition())
    assert encoded.tokens_BL is None and encoded.text is not None and denoiser.encode(encoded) is encoded
    assert torch.equal(call(denoiser, encoded), call(denoiser, text_condition()))
    assert not torch.equal(call(denoiser, text_condition(["", "", ""])), call(denoiser, text_condition()))


def test_forward_changes_nothing() -> None:
    denoiser = Denoiser(make_transformer("text"), trained_encoder())
    disturb(denoiser)
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    for rule in ("train", "threshold", "static"):
        denoiser(torch.randn(3, CHANNELS, SIZE, SIZE), torch.rand(3), text_condition(), Selection(rule))
    assert all(torch.equal(tensor, before[name]) for name, tensor in denoiser.state_dict().items())


def test_weight_decay_leaves_out_tables_of_vectors() -> None:
    denoiser = Denoiser(make_transformer("class"), trained_encoder())
    names = {id(parameter): name for name, parameter in denoiser.named_parameters()}
    assert {names[id(parameter)] for parameter in denoiser.embeddings()} == {
        "transformer.class_embedding.weight",
        "text_encoder.token_embedding.weight",
        "text_encoder.position_LT",
    }
