import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal  # Any: settings of any type are passed on to the config

import pytest
import torch
from torch import nn

from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures
from diffmoe_scale.encoders.text.tokenizer import Tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.networks import build_transformer
from diffmoe_scale.moe.routing import Selection
from tests.model.models import (
    CHANNELS,
    EXPERTS,
    SIZE,
    WIDTH,
    disturb,
    letter_ids,
    make_transformer,
    text_features,
    trained_encoder,
)
from tests.moe.layers import alone

REFERENCE = Path(__file__).parents[1] / "reference"

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


def test_the_stream_that_is_trained_along_takes_its_place_among_the_frozen_ones() -> None:
    frozen = tuple(text_features(seed=seed) for seed in (1, 2))
    for place in (0, 1, 2):
        denoiser = Denoiser(make_transformer("text"), trained_encoder(), trained_stream=place)
        condition = replace(text_condition(), text=TextFeatures(frozen))
        encoded = denoiser.encode(condition)
        assert encoded.tokens_BL is None and encoded.text is not None
        streams = list(encoded.text.streams)
        trained = streams.pop(place)
        assert streams == list(frozen) and trained.tokens_BLT.requires_grad
        assert denoiser.encode(encoded) is encoded


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


def test_state_of_the_demo_has_the_names_and_shapes_of_earlier_versions() -> None:
    """Recorded from the first version: its checkpoints must load."""
    lines = (REFERENCE / "demo_parameters.txt").read_text(encoding="utf-8").splitlines()
    expected = dict(line.split(" ") for line in lines)
    config = load_config(REFERENCE.parents[1] / "configs" / "demo.yaml", [])
    transformer = build_transformer(
        config,
        latent_size=32,
        output_channels=3,
        text_streams=(StreamWidths("text", 128, 128),),
        groups=alone(),
    )
    tokenizer = Tokenizer(letter_ids, start=[], end=[1], max_tokens=config.text.max_tokens)
    vocabulary = int(expected["text_encoder.token_embedding.weight"].split("x")[0])
    denoiser = Denoiser(transformer, TrainedTextEncoder(config.text, tokenizer, vocabulary=vocabulary))
    found = denoiser.canonical_parameters().items()
    assert {name: "x".join(map(str, parameter.shape)) for name, parameter in found} == expected


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_initial_weights_are_torchs_own_then_dits_from_one_generator(
    conditioning: Literal["text", "class"],
) -> None:
    """As a plain loop: every layer is made, in order, and then initialized again."""
    transformer = make_transformer(conditioning, seed=5)
    linears = {
        name: (layer.in_features, layer.out_features)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and ".feed_forward" not in name
    }
    torch.manual_seed(5)
    expected: dict[str, torch.Tensor] = {}
    for name, (width_in, width_out) in linears.items():
        nn.Linear(width_in, width_out)
        if name == "time_embedding.mlp.2":
            for number in (0, 2):
                weight = transformer.get_parameter(f"time_embedding.mlp.{number}.weight")
                expected[f"time_embedding.mlp.{number}"] = nn.init.normal_(torch.empty_like(weight), std=0.02)
            if transformer.class_embedding is not None:
                nn.Embedding(11, WIDTH)
    for name, (width_in, width_out) in linears.items():
        if name not in expected:
            expected[name] = nn.init.xavier_uniform_(torch.empty(width_out, width_in))
    zero = ("modulation", "final_projection", "cross_attention.projection")
    for name in linears:
        weight = transformer.get_parameter(f"{name}.weight")
        assert torch.equal(weight, torch.zeros_like(weight) if name.endswith(zero) else expected[name]), name


def test_every_layout_gives_an_expert_the_same_weights() -> None:
    """The generator of an expert is named by its global index: half of the experts start as in the whole."""
    whole = Denoiser(make_transformer("class", num_experts=EXPERTS), None).canonical_parameters()
    half = Denoiser(make_transformer("class", num_experts=EXPERTS // 2), None).canonical_parameters()
    names = [name for name in half if ".experts." in name]
    assert names and all(torch.equal(half[name], whole[name]) for name in names)
