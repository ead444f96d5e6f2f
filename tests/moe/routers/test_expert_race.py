"""One top K over tokens and experts, its losses and its threshold."""

import math
from dataclasses import replace
from typing import Any  # settings of any type are passed on to MoEConfig

import numpy as np
import pytest
import torch

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routers.expert_race import similarity_loss
from diffmoe_scale.moe.routing import Rule
from diffmoe_scale.moe.thresholds import update_routers
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, WIDTH, context, make_layer, tokens
from tests.ranks import run_on_ranks


def race(**settings: Any) -> MoELayer:
    return make_layer(**({"router": "expert_race", "gate": "identity"} | settings))


def plain_logits(layer: MoELayer, x_SD: torch.Tensor) -> torch.Tensor:
    hidden_SD = torch.nn.functional.gelu(layer.router.hidden(x_SD))
    return hidden_SD @ layer.router.weight.T


@pytest.mark.parametrize("pool", ["rank", "sample"])
@pytest.mark.parametrize("gate", ["identity", "sigmoid", "softmax"])
@pytest.mark.parametrize("capacity", [0.5, 1.3])
def test_the_best_pairs_of_a_pool_are_taken_whatever_token_or_expert(
    pool: str, gate: str, capacity: float
) -> None:
    layer, x_SD = race(pool=pool, gate=gate, capacity=capacity), tokens()
    logits_SE = plain_logits(layer, x_SD)
    score_SE = {
        "identity": logits_SE,
        "sigmoid": logits_SE.sigmoid(),
        "softmax": logits_SE.softmax(-1),
    }[gate]
    _, routing = layer(x_SD, context())
    size = TOKENS if pool == "sample" else SAMPLES * TOKENS
    kth = []
    for first in range(0, SAMPLES * TOKENS, size):
        part_SE = score_SE[first : first + size]
        k = math.floor(capacity * size)
        ordered = sorted(part_SE.flatten().tolist(), reverse=True)
        kth.append(ordered[k - 1])
        assert torch.equal(routing.mask_SE[first : first + size], part_SE >= ordered[k - 1])
    torch.testing.assert_close(routing.gate_SE, score_SE * routing.mask_SE)
    assert routing.statistic_X.tolist() == pytest.approx([sum(kth) / len(kth)], rel=1e-5)


def test_exactly_k_pairs_are_taken_of_equal_scores() -> None:
    layer = race(capacity=0.7)
    torch.nn.init.zeros_(layer.router.weight)
    assert layer(tokens(), context())[1].mask_SE.sum() == math.floor(0.7 * SAMPLES * TOKENS)


def plain_similarity(logits_SE: torch.Tensor, mask_SE: torch.Tensor) -> torch.Tensor:
    """Equations 9 to 11, element by element."""
    share_SE, num_experts = logits_SE.softmax(-1), logits_SE.shape[1]
    m = [
        [float((mask_SE[:, i] & mask_SE[:, j]).sum()) for j in range(num_experts)] for i in range(num_experts)
    ]
    diagonal = sum(m[i][i] for i in range(num_experts))
    others = sum(m[i][j] for i in range(num_experts) for j in range(num_experts) if i != j)
    total = torch.zeros(())
    for i in range(num_experts):
        for j in range(num_experts):
            weight = (
                num_experts * m[i][i] / diagonal
                if i == j
                else (num_experts**2 - num_experts) * m[i][j] / others
            )
            total = total + weight * (share_SE[:, i] * share_SE[:, j]).sum()
    return total / len(logits_SE)


def test_the_similarity_loss_is_equations_9_to_11_with_a_gradient() -> None:
    layer, x_SD = race(capacity=2.0, similarity_weight=0.5), tokens()
    _, routing = layer(x_SD, context())
    expected = 0.5 * plain_similarity(plain_logits(layer, x_SD), routing.mask_SE)
    loss = routing.aux_losses["similarity"]
    torch.testing.assert_close(loss, expected)
    got, theirs = (torch.autograd.grad(value, layer.router.weight)[0] for value in (loss, expected))
    assert theirs.any()
    torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-7)


def test_the_similarity_loss_of_equal_probabilities_is_one_and_knows_no_order() -> None:
    generator = torch.Generator().manual_seed(0)
    mask_EP = torch.rand(EXPERTS, 30, generator=generator) > 0.5
    assert float(similarity_loss(torch.zeros(30, EXPERTS), mask_EP)) == pytest.approx(1.0)
    logits_SE, order = torch.randn(30, EXPERTS, generator=generator), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        similarity_loss(logits_SE[:, order], mask_EP[order]), similarity_loss(logits_SE, mask_EP)
    )
    assert float(similarity_loss(logits_SE, torch.zeros_like(mask_EP))) == 0.0


def loss_of_rank(parallel: ParallelContext) -> tuple[float, np.ndarray, float]:
    """The mean over ranks of loss and gradient, of the tokens of seeds 0 to 3."""
    ranks = parallel.dp_group.size()
    layer = race(groups=parallel.megatron_groups, pool="data_parallel", capacity=2.0)
    count = 4 // ranks
    x_SD = torch.cat([tokens(seed=parallel.rank * count + part) for part in range(count)])
    _, routing = layer(x_SD, context(num_samples=SAMPLES * count))
    loss = routing.aux_losses["similarity"]
    (gradient_ED,) = torch.autograd.grad(loss, layer.router.weight)
    for value in (loss.detach(), gradient_ED):
        torch.distributed.all_reduce(value)
        value /= ranks
    return float(loss.detach()), gradient_ED.numpy(), float(routing.statistic_X)


def test_loss_and_gradient_of_a_pool_of_ranks_are_those_of_one_process() -> None:
    alone = run_on_ranks(loss_of_rank, 1)[0]
    for loss, gradient_ED, kth in run_on_ranks(loss_of_rank, 2, expert_parallel=2):
        assert (loss, kth) == (pytest.approx(alone[0], rel=1e-5), pytest.approx(alone[2], rel=1e-6))
        assert np.abs(alone[1]).max() > 0
        np.testing.assert_allclose(gradient_ED, alone[1], rtol=1e-4, atol=1e-8)


def test_the_threshold_is_one_number_and_inference_takes_about_the_capacity() -> None:
    layer = race(capacity=1.0, threshold_decay=0.9)
    for seed in range(40):
        routing = layer(tokens(seed=seed, num_samples=16), context(num_samples=16))[1]
        update_routers([layer], [routing.statistic_X.unsqueeze(0)], None)
    x_SD = tokens(seed=99, num_samples=128)
    routing = layer(x_SD, context("threshold", num_samples=128))[1]
    assert torch.equal(routing.mask_SE, plain_logits(layer, x_SD) > layer.router.limit.threshold())
    assert float(routing.metrics["capacity"]) == pytest.approx(1.0, abs=0.06)
    assert layer.router.limit.expert_threshold_E.shape == (1,)


def test_a_sample_does_not_depend_on_its_batch_but_by_the_top_k() -> None:
    layer, x_SD = race(), tokens()
    layer.router.limit.set_threshold(torch.tensor([0.1]))
    cases: list[tuple[Rule, bool]] = [("threshold", True), ("interval", True), ("static", False)]
    for rule, is_independent in cases:
        y_SD, _ = layer(x_SD, context(rule))
        parts = [layer(part, context(rule, num_samples=1))[0] for part in x_SD.split(TOKENS)]
        assert torch.allclose(y_SD, torch.cat(parts), atol=1e-6) == is_independent


@pytest.mark.parametrize("gate", ["identity", "sigmoid", "softmax"])
def test_calibrated_thresholds_decide_as_the_probability_of_the_same_logit(gate: str) -> None:
    layer, x_SD = race(gate=gate), tokens()
    probability = layer.router.decision_logits(x_SD, context()).sigmoid()
    layer.router.calibrate(torch.tensor([0.3]))
    mask_SE = layer(x_SD, context("threshold"))[1].mask_SE
    assert torch.equal(mask_SE, probability > 0.3) and 0 < mask_SE.sum() < mask_SE.numel()
    assert torch.equal(mask_SE, layer(x_SD, context("interval", gamma=0.3))[1].mask_SE)


def test_layers_predict_the_networks_target_from_the_routers_hidden_layer_in_training_only() -> None:
    layer, x_SD = make_layer(router="expert_race", gate="identity", target_width=5), tokens()
    head = layer.router.target
    assert head is not None
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    hidden_SD = torch.nn.functional.gelu(layer.router.hidden(x_SD))
    expected_SW = hidden_SD @ head.weight.T + head.bias
    torch.testing.assert_close(layer(x_SD, context())[1].target_SW, expected_SW)
    assert layer(x_SD, context("static"))[1].target_SW is None


def test_a_race_that_no_pair_can_win_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"moe.capacity is 0.02 for a pool of 24 tokens: none is taken"):
        race(capacity=0.02)(tokens(), context())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"router_input": "decoupled"}, r"moe.router_input is 'decoupled'; expected 'modulated'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(race().router.moe, **settings)
    with pytest.raises(ValueError, match=r"'threshold_count' but moe\.router 'expert_race' has no capacity"):
        race()(torch.zeros(SAMPLES * TOKENS, WIDTH), context("threshold_count"))
