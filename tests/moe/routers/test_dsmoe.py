"""Token choice by sigmoid scores and a bias, against loops and closed forms."""

from dataclasses import replace
from typing import Any  # settings of any type are passed on to MoEConfig

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.thresholds import update_routers
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, context, make_layer, tokens
from tests.ranks import run_on_ranks


def dsmoe(**settings: Any) -> MoELayer:
    own: dict[str, Any] = {"router": "dsmoe", "gate": "sigmoid", "top_k": 2}
    return make_layer(**(own | settings))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_weights_are_the_chosen_sigmoids_over_their_sum_times_the_scale(top_k: int) -> None:
    layer, x_SD = dsmoe(top_k=top_k, routed_scale=2.5), tokens()
    layer.router.balance.bias_E.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
    score_SE = (x_SD @ layer.router.weight.T).sigmoid()
    _, routing = layer(x_SD, context())
    for s, score_E in enumerate(score_SE.tolist()):
        choice = [score + float(b) for score, b in zip(score_E, layer.router.balance.bias_E, strict=True)]
        best = sorted(range(EXPERTS), key=lambda e: -choice[e])[:top_k]
        total = sum(score_E[e] for e in best) if top_k > 1 else 1.0
        expected = [2.5 * score_E[e] / total if e in best else 0.0 for e in range(EXPERTS)]
        assert routing.gate_SE[s].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_constant_added_to_all_biases_changes_nothing() -> None:
    layer, x_SD = dsmoe(), tokens()
    before_SD, _ = layer(x_SD, context())
    layer.router.balance.bias_E += 0.25
    assert torch.equal(layer(x_SD, context())[0], before_SD)


def test_the_bias_gets_no_gradient_and_the_scores_do() -> None:
    layer = dsmoe()
    layer(tokens(), context())[0].square().sum().backward()
    assert layer.router.weight.grad is not None and layer.router.weight.grad.any()
    assert not layer.router.balance.bias_E.requires_grad


def test_the_bias_moves_by_the_sign_of_mean_load_minus_load() -> None:
    layer = dsmoe(bias_update_rate=0.01)
    update_routers([layer], [torch.tensor([[7.0, 1, 2, 2]]), torch.tensor([[1.0, 1, 2, 4]])], None)
    # Together 8, 2, 4, 6; the mean is 5.
    assert layer.router.balance.bias_E.tolist() == pytest.approx([-0.01, 0.01, 0.01, -0.01])
    update_routers([layer], [torch.full((1, EXPERTS), 3.0)], None)
    assert layer.router.balance.bias_E.tolist() == pytest.approx([-0.01, 0.01, 0.01, -0.01])


@pytest.mark.parametrize(("rate", "is_balanced"), [(0.01, True), (0.0, False)])
def test_a_favoured_expert_loses_its_lead_with_the_bias_alone(rate: float, is_balanced: bool) -> None:
    layer = dsmoe(top_k=1, bias_update_rate=rate, router_init_std=0.1)
    with torch.no_grad():
        layer.router.weight[0, 0] = 3.0
    for seed in range(150):
        x_SD = tokens(seed=seed, num_samples=8)
        x_SD[:, 0] = 1.0
        _, routing = layer(x_SD, context(num_samples=8))
        update_routers([layer], [routing.statistic_X.unsqueeze(0)], None)
    load_E = routing.metrics["load_E"]
    assert (float(load_E.max() / load_E.mean()) - 1 < 0.5) == is_balanced


def test_only_training_counts_loads() -> None:
    layer, x_SD = dsmoe(), tokens()
    assert layer(x_SD, context())[1].statistic_X.sum() == 2 * SAMPLES * TOKENS
    assert layer(x_SD, context("static"))[1].statistic_X.numel() == 0
    assert torch.equal(layer(x_SD, context("static"))[0], layer(x_SD, context())[0])


def test_the_bias_stays_fp32_and_is_kept_by_checkpoints() -> None:
    layer = dsmoe()
    layer.router.balance.bias_E.fill_(0.123456789)
    layer.to(torch.bfloat16)
    assert layer.router.weight.dtype == torch.bfloat16
    assert layer.router.balance.bias_E.tolist() == [pytest.approx(0.123456789, rel=1e-7)] * EXPERTS
    assert "router.balance.bias_E" in layer.state_dict()


def biases_of_rank(parallel: ParallelContext) -> np.ndarray:
    """After 5 steps of 3 micro-batches over all ranks together."""
    layer = dsmoe(num_experts=6, bias_update_rate=0.01, groups=parallel.megatron_groups)
    ranks = parallel.dp_group.size()
    for step in range(5):
        parts = [
            layer(tokens(seed=100 * step + part), context())[1].statistic_X.unsqueeze(0)
            for part in range(parallel.rank, 12, ranks)
        ]
        update_routers([layer], parts, parallel.dp_group)
    bias_E: np.ndarray = layer.router.balance.bias_E.numpy()
    return bias_E


def test_the_bias_is_the_same_on_any_number_of_ranks_and_micro_batches() -> None:
    alone = run_on_ranks(biases_of_rank, 1)[0]
    assert np.unique(np.abs(alone)).size > 1
    for world, expert_parallel in ((2, 1), (2, 2), (3, 3)):
        for bias_E in run_on_ranks(biases_of_rank, world, expert_parallel=expert_parallel):
            assert np.array_equal(bias_E, alone)


def test_other_gates_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"moe.gate is 'softmax'; expected 'sigmoid' for moe.router 'dsmoe'"):
        replace(dsmoe().router.moe, gate="softmax")


def loop_of(layer: MoELayer, x_SD: Tensor, gate_SE: Tensor) -> Tensor:
    """Each token through each expert that it took, one after the other."""
    weights = {name: parameter for name, parameter in layer.expert_parameters()}
    rows = []
    for x_D, gate_E in zip(x_SD, gate_SE, strict=True):
        y_D = torch.zeros_like(x_D)
        for e in gate_E.nonzero().flatten().tolist():
            name = f"experts.{e}."
            hidden = torch.nn.functional.gelu(
                weights[f"{name}w_in"] @ x_D + weights[f"{name}b_in"], approximate="tanh"
            )
            y_D = y_D + gate_E[e] * (weights[f"{name}w_out"] @ hidden + weights[f"{name}b_out"])
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize(
    "settings",
    [
        {"router": "dsmoe", "gate": "sigmoid", "top_k": 2},
        {"router": "expert_race", "gate": "identity"},
        {"router": "expert_threshold", "gate": "sigmoid"},
        {"router": "promoe", "gate": "identity"},
    ],
    ids=lambda settings: settings["router"],
)
def test_outputs_and_gradients_of_each_router_are_those_of_a_loop(
    settings: dict[str, Any], backend: str
) -> None:
    layer = make_layer(backend=backend, **settings)
    x_SD, grad_SD = tokens().requires_grad_(), tokens(seed=1)
    around = replace(context(), dropped_B=torch.tensor([False, True, False]))
    y_SD, routing = layer(x_SD, around)
    expected_SD = loop_of(layer, x_SD, layer.router(x_SD, around).gate_SE)
    torch.testing.assert_close(y_SD, expected_SD, rtol=1e-4, atol=1e-5)
    over = [x_SD, layer.router.weight, *(parameter for _, parameter in layer.expert_parameters())]
    got, expected = (torch.autograd.grad(y, over, grad_SD, allow_unused=True) for y in (y_SD, expected_SD))
    assert routing.mask_SE.any()
    for ours, theirs in zip(got, expected, strict=True):
        # A loop gives an expert without tokens none, the layer zeros.
        ours = torch.zeros(()) if ours is None else ours
        torch.testing.assert_close(
            ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-3, atol=1e-4
        )
