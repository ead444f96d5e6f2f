"""Any combination of the network's switches that the config accepts builds, learns, and is kept whole by its
canonical names; others are an error of one sentence."""

from itertools import islice

import numpy as np
import pytest
import torch

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.build import build_denoiser
from tests.model.variants import FIXED, draw_words, make_denoiser, predict, total_loss, valid_configs
from tests.ranks import run_on_ranks


def state_of(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    return {**denoiser.canonical_parameters(), **denoiser.canonical_buffers()}


def check_gradients(config: Config) -> None:
    denoiser = make_denoiser(config)
    prediction = predict(denoiser, config)
    total_loss(prediction).backward()
    assert prediction.value_BCHW.isfinite().all() and prediction.value_BCHW.std() > 0
    for name, parameter in denoiser.canonical_parameters().items():
        if ".experts." in name and parameter.grad is None:
            continue  # no token took it
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Keys shift all logits of a query alike: their biases have no effect.
        has_effect = parameter.grad.any() or ".experts." in name
        assert has_effect or name.endswith(("qkv.bias", "key_value.bias")), name


def test_any_combination_has_finite_gradients_of_all_that_it_has() -> None:
    for seed, config in islice(valid_configs(), 20):
        print(f"case {seed}: {' '.join(draw_words(seed))}")
        check_gradients(config)


def round_trip(config: Config) -> None:
    first, second = make_denoiser(config), build_denoiser(config)
    assert all(tensor.is_meta for tensor in state_of(second).values())
    assert len(second.canonical_parameters()) == len(list(second.parameters()))
    second.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*second.parameters(), *second.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        state = state_of(second)
        assert state.keys() == state_of(first).keys()
        for name, tensor in state_of(first).items():
            assert state[name].shape == tensor.shape
            state[name].copy_(tensor)
        answers = [predict(denoiser, config).value_BCHW for denoiser in (first, second)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("number", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_any_combination_is_kept_whole_by_its_canonical_names(number: int) -> None:
    for seed, config in islice(valid_configs(first=1000), number):
        print(f"case {seed}: {' '.join(draw_words(seed))}")
        round_trip(config)


def test_what_does_not_fit_is_an_error_of_one_sentence_that_names_a_setting() -> None:
    sentences = set()
    for seed in range(100):
        try:
            load_config(None, draw_words(seed))
        except ValueError as error:
            sentences |= set(str(error).splitlines())  # one of each section
    assert len(sentences) > 5
    for sentence in sentences:
        assert sentence.startswith(("model.", "moe.")) and "; expected " in sentence


EVERYTHING = [
    "model.attention=joint",
    "model.positions=rope2d",
    "model.qk_norm=rms",
    "model.modulation=shared",
    "moe.activation=swiglu",
    "moe.every=1",
    "moe.first_dense=1",
    "model.depth=3",
]
LAYOUT_CASES = [
    [*EVERYTHING, "moe.shared_experts=1", "moe.num_experts=8", "moe.expert_width_ratio=0.5"],
    [*EVERYTHING, "moe.num_experts=64", "moe.expert_width_ratio=0.25", "model.patch_size=1"],
    ["model.depth=2", "moe.num_experts=128", "moe.expert_width_ratio=0.25", "model.patch_size=1"],
    [
        "model.depth=2",
        "moe.num_experts=64",
        "moe.pool=data_parallel",
        "model.patch_size=2",
        "moe.capacity=1.7",
    ],
    [
        "model.depth=2",
        "moe.router=token_choice",
        "moe.top_k=2",
        "model.modulation=shared",
        "moe.num_experts=4",
    ],
    ["model.depth=2", "moe.router=expert_choice", "moe.num_experts=16", "model.qk_norm=rms"],
    ["model.depth=2", "moe.router=dsmoe", "moe.top_k=2", "moe.num_experts=8"],
    ["model.depth=2", "moe.router=expert_race", "moe.num_experts=8", "moe.pool=data_parallel"],
    ["model.depth=2", "moe.router=expert_threshold", "moe.num_experts=8"],
    ["model.depth=2", "moe.router=promoe", "moe.num_experts=8", "moe.top_k=2"],
]


def answers_on_rank(parallel: ParallelContext) -> list[dict[str, np.ndarray]]:
    answers = []
    for words in LAYOUT_CASES:
        config = load_config(None, [*FIXED, *words])
        denoiser = make_denoiser(config, parallel=parallel)
        prediction = predict(denoiser, config, seed=parallel.rank)
        total_loss(prediction).backward()
        gradients = {
            name: np.asarray(parameter.grad)
            for name, parameter in denoiser.canonical_parameters().items()
            if parameter.grad is not None
        }
        answers.append({"value": prediction.value_BCHW.detach().numpy(), **gradients})
    return answers


def test_experts_on_two_ranks_are_those_on_one() -> None:
    """Each rank has a batch of its own. With all experts on each rank, an expert's gradient is that of one
    batch; split over two, that of the sum."""
    whole, split = (run_on_ranks(answers_on_rank, 2, expert_parallel=size) for size in (1, 2))
    for case, words in enumerate(LAYOUT_CASES):
        for rank in range(2):
            for name, got in split[rank][case].items():
                if ".experts." in name:
                    expected = sum(whole[source][case].get(name, 0) for source in range(2))
                else:
                    expected = whole[rank][case][name]
                scale = max(np.abs(expected).max(), 1e-6)
                # Sums of rows in another order.
                assert np.abs(got - expected).max() <= 2e-5 * scale + 1e-7, (words, name)
