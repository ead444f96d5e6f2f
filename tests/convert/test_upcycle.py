"""Weights for another model: the first answer is the source's wherever it is said to be."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # arguments of any type

import pytest
import torch

from diffmoe_scale.checkpoint.stored import StoredWeights, open_weights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.upcycle import TOLERANCE, compare, grow, upcycle
from diffmoe_scale.convert.verify import build_meta, check_tensors
from diffmoe_scale.nn.generator import named_generator
from tests.train.runs import tiny_config

DENSE = ["moe.num_experts=0", "model.depth=4"]
EXPERTS = ["model.depth=4"]


def drawn_weights(*settings: str, families: Sequence[str] = ("ema",)) -> StoredWeights:
    """A model of classes whose every weight has a value of its own; thresholds are 0.3."""
    config = tiny_config([*settings])
    denoiser = build_meta(config, {})
    tensors = {
        f"{family}/{name}": LazyTensor.of(
            # Router scores that differ by more than rounding.
            0.1 * torch.randn(parameter.shape, generator=named_generator(3, family, name))
        )
        for family in families
        for name, parameter in denoiser.canonical_parameters().items()
    }
    for name, buffer in denoiser.canonical_buffers().items():
        value = 5 if buffer.dtype == torch.int64 else 0.3
        tensors[f"buffer/{name}"] = LazyTensor.of(torch.full(buffer.shape, value, dtype=buffer.dtype))
    identity = model_settings(config, tokenizer=Path("no file"), frozen={})
    return StoredWeights(path=Path("drawn"), tensors=tensors, config=config, settings=identity)


SHARED = ["moe.num_experts=4", "moe.shared_experts=1"]
STATIC = "sampling.selection=static"
EXACT: dict[str, tuple[list[str], list[str]]] = {
    "a shared expert, DiffMoE": (DENSE, SHARED),
    "a shared expert, sigmoid": (DENSE, [*SHARED, "moe.gate=sigmoid"]),
    "a shared expert, identity": (DENSE, [*SHARED, "moe.gate=identity"]),
    "a shared expert, expert choice": (DENSE, [*SHARED, "moe.router=expert_choice", STATIC]),
    "a shared expert beside pieces": (
        DENSE,
        ["moe.num_experts=6", "moe.shared_experts=4", "moe.expert_width_ratio=1", "moe.every=1"],
    ),
    "copies, token choice": (DENSE, ["moe.num_experts=4", "moe.router=token_choice", STATIC]),
    "copies, two of them": (DENSE, ["moe.num_experts=6", "moe.router=token_choice", "moe.top_k=2", STATIC]),
    "copies, sigmoid": (
        DENSE,
        ["moe.num_experts=4", "moe.router=token_choice", "moe.gate=sigmoid", STATIC],
    ),
    "pieces, token choice": (
        DENSE,
        [
            *("moe.num_experts=12", "moe.router=token_choice", "moe.top_k=4", STATIC),
            *("moe.expert_width_ratio=1", "moe.router_input=decoupled"),
        ],
    ),
    "pieces of two copies": (
        DENSE,
        ["moe.num_experts=12", "moe.router=token_choice", "moe.top_k=4", STATIC, "moe.expert_width_ratio=2"],
    ),
    "copies, all experts at first": (
        DENSE,
        ["moe.num_experts=4", "moe.capacity=1", "moe.capacity_start=4", "moe.capacity_steps=100"],
    ),
    "SwiGLU": ([*DENSE, "moe.activation=swiglu"], SHARED),
    "SwiGLU in pieces": (
        [*DENSE, "moe.activation=swiglu"],
        ["moe.num_experts=4", "moe.capacity=4", "moe.expert_width_ratio=2"],
    ),
    "twice the experts of token choice": (
        [*EXPERTS, "moe.router=token_choice", STATIC],
        ["moe.num_experts=8"],
    ),
    "twice the experts for twice of them": (
        [*EXPERTS, "moe.router=token_choice", "moe.gate=sigmoid", "moe.top_k=2", STATIC],
        ["moe.num_experts=8", "moe.top_k=4"],
    ),
    "twice the experts at twice the capacity": (EXPERTS, ["moe.num_experts=8", "moe.capacity=2"]),
    "depth": (DENSE, ["model.depth=7"]),
    "depth with experts": (EXPERTS, ["model.depth=10"]),
    "depth of a shared modulation": ([*EXPERTS, "model.modulation=shared"], ["model.depth=6"]),
    "depth and experts": (DENSE, [*SHARED, "model.depth=6", "moe.first_dense=2"]),
    "another size, the same places": (EXPERTS, ["model.image_size=32", "model.position_size=16"]),
    "another size by rotation": (
        [*EXPERTS, "model.positions=rope2d"],
        ["model.image_size=32", "model.position_size=16"],
    ),
    "another activation checkpointing": (DENSE, ["model.activation_checkpointing=blocks"]),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_first_answer_is_the_source_s(case: str) -> None:
    source, settings = EXACT[case]
    stored = drawn_weights(*source)
    grown = grow(stored, settings)
    check_tensors(grown.stored.config, grown.stored)
    assert grown.reasons == []
    assert compare(stored, grown.stored, "ema") <= TOLERANCE


APPROXIMATE: dict[str, tuple[list[str], list[str], str]] = {
    "copies by expert choice": (DENSE, ["moe.num_experts=4"], "in the mean over tokens only"),
    "pieces not all taken": (
        DENSE,
        [
            *("moe.num_experts=8", "moe.router=token_choice", "moe.top_k=3"),
            STATIC,
            "moe.expert_width_ratio=2",
        ],
        "moe.top_k is 3, no multiple of 2",
    ),
    "twice the experts": (EXPERTS, ["moe.num_experts=8"], "2 times are equal .moe.capacity."),
    "half the experts": (EXPERTS, ["moe.num_experts=2"], "a mean of experts"),
    "dense of experts": (EXPERTS, ["moe.num_experts=0"], "a mean of experts"),
    "dense of a shared expert": (
        [*EXPERTS, "moe.shared_experts=1"],
        ["moe.num_experts=0", "moe.shared_experts=0"],
        "left out",
    ),
    "larger pictures": (DENSE, ["model.image_size=32"], r"model.position_size=16 keeps them"),
}


@pytest.mark.parametrize("case", APPROXIMATE)
def test_a_model_that_cannot_begin_so_says_why(case: str) -> None:
    source, settings, reason = APPROXIMATE[case]
    grown, lines = upcycle(drawn_weights(*source), "ema", settings, noise=0.0, is_verified=True)
    check_tensors(grown.config, grown)
    (line,) = [line for line in lines if line.startswith("step 0 is not the source's")]
    assert float(line.rpartition(" ")[2]) > TOLERANCE

    assert re.search(reason, line)


def test_copies_are_the_dense_network_in_the_mean_over_tokens() -> None:
    """Expert choice at capacity 1: each expert with its gate adds a quarter for a quarter of the tokens."""
    stored = drawn_weights(*DENSE)
    grown = grow(stored, ["moe.num_experts=4", "moe.gate=sigmoid"])
    name = "ema/transformer.blocks.1.feed_forward."
    total = sum(
        grown.stored.tensors[f"{name}experts.{expert}.w_out"].read() * 0.5 * (1 / 4) for expert in range(4)
    )
    expected = stored.tensors[f"{name}w_out.weight"].read()
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("ratio", [4, 1])
def test_the_mean_of_copies_is_the_dense_network_again(kind: str, ratio: int) -> None:
    stored = drawn_weights(*DENSE, f"moe.activation={kind}", families=("ema", "master"))
    settings = ["moe.num_experts=8", f"moe.expert_width_ratio={ratio}", "moe.every=1"]
    back = grow(grow(stored, settings).stored, ["moe.num_experts=0"]).stored
    assert back.tensors.keys() == stored.tensors.keys()
    for tensor_name, tensor in stored.tensors.items():
        torch.testing.assert_close(back.tensors[tensor_name].read(), tensor.read())


def test_noise_tells_copies_apart_and_is_that_share_of_a_matrix() -> None:
    stored = drawn_weights(*DENSE, "model.width=128", families=("ema", "master"))
    grown = grow(stored, ["moe.num_experts=4"], noise=0.1)
    start = "transformer.blocks.1.feed_forward."
    first, second = (grown.stored.tensors[f"ema/{start}experts.{e}.w_in"].read() for e in (0, 1))
    dense = stored.tensors[f"ema/{start}w_in.weight"].read()
    assert (first - dense).std() / dense.std() == pytest.approx(0.1, rel=0.02)
    assert (first - second).std() / dense.std() == pytest.approx(0.1 * 2**0.5, rel=0.02)
    of_master = grown.stored.tensors[f"master/{start}experts.0.w_in"].read()
    difference = of_master - stored.tensors[f"master/{start}w_in.weight"].read()
    # The noise of averages is that of weights, for their own deviations.
    assert torch.corrcoef(torch.stack([difference.flatten(), (first - dense).flatten()]))[0, 1] > 0.999
    assert any("--noise is 0.1" in reason for reason in grown.reasons)


def test_noise_beside_a_shared_expert_does_not_change_the_first_answer() -> None:
    stored = drawn_weights(*DENSE)
    grown = grow(stored, SHARED, noise=0.5)
    assert grown.reasons == [] and compare(stored, grown.stored, "ema") <= TOLERANCE


def test_added_blocks_learn() -> None:
    """Gates of 0 have a gradient: what they weigh is not 0."""
    grown = grow(drawn_weights(*DENSE), ["model.depth=8"]).stored
    weights = {name: tensor.read() for name, tensor in grown.family("ema").items()}
    for added in (1, 3, 5, 7):
        modulation = weights[f"transformer.blocks.{added}.modulation.weight"]
        shift1, _, gate1, _, _, gate2 = modulation.chunk(6)
        assert gate1.abs().max() == gate2.abs().max() == 0 and shift1.abs().max() > 0
        assert weights[f"transformer.blocks.{added}.feed_forward.w_out.weight"].abs().max() > 0


REFUSED: dict[str, tuple[list[str], list[str], float, str]] = {
    "width": (DENSE, ["model.width=64"], 0, "model.width was 32, is 64"),
    "activation": (DENSE, [*SHARED, "moe.activation=swiglu"], 0, "moe.activation was 'gelu', is 'swiglu'"),
    "gate of experts": (EXPERTS, ["moe.gate=sigmoid"], 0, "moe.gate was 'softmax', is 'sigmoid'"),
    "identity": (DENSE, ["moe.num_experts=4", "moe.gate=identity"], 0, "moe.gate is 'identity'"),
    "shared width": (DENSE, ["moe.num_experts=4", "moe.shared_experts=2"], 0, "moe.shared_experts is 2"),
    "expert width": (DENSE, ["moe.num_experts=4", "moe.expert_width_ratio=3"], 0, "moe.expert_width_ratio"),
    "pieces": (DENSE, ["moe.num_experts=6", "moe.expert_width_ratio=1"], 0, "a multiple of 4, the pieces"),
    "number": (EXPERTS, ["moe.num_experts=6"], 0, "moe.num_experts was 4, is 6"),
    "fewer blocks": (DENSE, ["model.depth=3"], 0, "model.depth was 4, is 3"),
    "uneven depth": (EXPERTS, ["model.depth=5"], 0, "by a multiple of moe.every .2."),
    "noise for nobody": (DENSE, ["model.depth=5"], 0.1, "--noise is 0.1; expected 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case: str) -> None:
    source, settings, noise, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        grow(drawn_weights(*source), settings, noise=noise)


def test_a_run_is_made_an_export(run: Path, tmp_path: Path) -> None:
    """Through the command's own way: a target whose tensors are those of its config, and the lines."""

    def prepare(stored: StoredWeights, weights: str) -> tuple[StoredWeights, list[str]]:
        return upcycle(stored, weights, ["moe.num_experts=8", "moe.capacity=2"], noise=0.0, is_verified=True)

    options: dict[str, Any] = {"weights": "all"}
    lines = convert(run, tmp_path / "a.safetensors", Options(**options), prepare=prepare)
    assert any("step 0 is the source's to round-off" in line for line in lines)
    stored = open_weights(tmp_path / "a.safetensors")
    assert stored.config.moe.num_experts == 8 and stored.families == ["master", "ema", "buffer"]
