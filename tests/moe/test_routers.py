import math
from dataclasses import replace

import pytest
import torch

from diffmoe_scale.moe.routing import Rule
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, WIDTH, context, make_layer, tokens


@pytest.mark.parametrize("capacity", [0.5, 1.0, 1.3, 2.0])
def test_each_expert_of_diffmoe_takes_k_tokens_of_the_whole_pool(capacity):
    _, routing = make_layer(capacity=capacity)(tokens(), context())
    assert (
        routing.mask_SE.sum(dim=0).tolist() == [math.floor(capacity * SAMPLES * TOKENS / EXPERTS)] * EXPERTS
    )


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "identity"])
def test_experts_choose_by_and_weigh_with_the_named_function_of_the_logits(gate):
    layer, x_SD = make_layer(gate=gate), tokens()
    _, routing = layer(x_SD, context())
    logits_SE = x_SD @ layer.router.weight.T
    expected_SE = {
        "softmax": logits_SE.softmax(dim=-1),
        "sigmoid": logits_SE.sigmoid(),
        "identity": logits_SE,
    }[gate]
    torch.testing.assert_close(routing.gate_SE, expected_SE * routing.mask_SE)
    for expert in range(EXPERTS):
        best = sorted(range(len(x_SD)), key=lambda token: -float(expected_SE[token, expert]))[
            : len(x_SD) // EXPERTS
        ]
        assert sorted(best) == routing.mask_SE[:, expert].nonzero().flatten().tolist()


def test_expert_choice_does_not_look_across_samples():
    layer, x_SD = make_layer(router="expert_choice"), tokens()
    _, routing = layer(x_SD, context())
    for sample, mask_NE in zip(x_SD.split(TOKENS), routing.mask_SE.split(TOKENS), strict=True):
        assert mask_NE.sum(dim=0).tolist() == [TOKENS // EXPERTS] * EXPERTS
        assert torch.equal(layer(sample, context(num_samples=1))[1].mask_SE, mask_NE)


def test_token_choice_gives_each_token_its_top_k_experts():
    _, routing = make_layer(router="token_choice", top_k=2)(tokens(), context())
    assert routing.mask_SE.sum(dim=1).tolist() == [2] * SAMPLES * TOKENS


def test_balance_loss_is_its_weight_where_all_experts_are_equal():
    layer = make_layer(router="token_choice", balance_weight=0.25, top_k=EXPERTS)
    torch.nn.init.zeros_(layer.router.weight)
    assert layer(tokens(), context())[1].aux_losses["balance"].item() == pytest.approx(0.25)


def test_the_routers_inference_needs_no_training_terms():
    cases: list[tuple[str, Rule]] = [
        ("diffmoe", "threshold"),
        ("diffmoe", "static"),
        ("expert_choice", "static"),
        ("token_choice", "static"),
    ]
    for router, rule in cases:
        _, routing = make_layer(router=router)(tokens(), context(rule))
        assert routing.aux_losses == {} and routing.statistic_X.numel() == 0


def test_decoupled_router_is_a_linear_map_of_token_and_timestep_embedding():
    layer = make_layer(router_input="decoupled", gate="identity", capacity=EXPERTS)
    unmodulated_SD, time_BD = tokens(seed=1), torch.randn(SAMPLES, WIDTH)
    _, routing = layer(tokens(), context(unmodulated_SD=unmodulated_SD, time_BD=time_BD))
    assert layer.router.time_weight is not None
    both = torch.cat([unmodulated_SD, time_BD.repeat_interleave(TOKENS, dim=0)], dim=1)
    torch.testing.assert_close(
        routing.gate_SE, both @ torch.cat([layer.router.weight, layer.router.time_weight], dim=1).T
    )


@pytest.mark.parametrize(
    "rule, is_independent",
    [("threshold", True), ("interval", True), ("threshold_count", False), ("static", False)],
)
def test_only_the_predictor_alone_makes_a_sample_independent_of_its_batch(rule, is_independent):
    layer, x_SD = make_layer(threshold_bias_correction=False), tokens()
    layer.router.predictor.expert_threshold_E.fill_(0.5)
    y_SD, _ = layer(x_SD, context(rule))
    one_by_one = torch.cat([layer(sample, context(rule, num_samples=1))[0] for sample in x_SD.split(TOKENS)])
    # Same arithmetic over other numbers of rows: round-off only.
    assert torch.allclose(y_SD, one_by_one, atol=1e-6) == is_independent


@pytest.mark.parametrize("router", ["diffmoe", "expert_choice", "token_choice"])
@pytest.mark.parametrize(
    "step, named",
    [(12, r"router of block 7 got NaN scores in step 12: "), (None, r"router of block 7 got NaN scores: ")],
)
def test_nan_scores_are_an_error_that_names_the_block_and_the_step_of_training(router, step, named):
    with pytest.raises(RuntimeError, match=named):
        make_layer(layer_index=7, router=router)(
            tokens().index_fill(0, torch.tensor([5]), math.nan), context(step=step)
        )


def test_a_pool_of_one_sample_does_not_look_across_samples():
    layer, x_SD = make_layer(pool="sample", capacity=1.5), tokens()
    for rule in ("train", "static"):
        mask_SE = layer(x_SD, context(rule))[1].mask_SE
        for sample, mask_NE in zip(x_SD.split(TOKENS), mask_SE.split(TOKENS), strict=True):
            assert mask_NE.sum(dim=0).tolist() == [math.floor(1.5 * TOKENS / EXPERTS)] * EXPERTS
            assert torch.equal(layer(sample, context(rule, num_samples=1))[1].mask_SE, mask_NE)


def test_thresholds_of_a_pool_of_one_sample_follow_the_mean_of_the_samples():
    layer, x_SD = make_layer(pool="sample"), tokens()
    probability_SE = layer.router.predictor(x_SD).sigmoid()
    kth_BE = torch.stack(
        [
            sample.sort(dim=0, descending=True).values[TOKENS // EXPERTS - 1]
            for sample in probability_SE.split(TOKENS)
        ]
    )
    torch.testing.assert_close(layer(x_SD, context())[1].statistic_X, kth_BE.mean(dim=0))


@pytest.mark.parametrize("settings", [{"pool": "rank"}, {"pool": "sample"}, {"router": "expert_choice"}])
def test_a_schedule_changes_the_tokens_of_an_expert_with_the_step_and_leaves_inference_alone(settings):
    layer = make_layer(capacity=1.0, capacity_start=4.0, capacity_steps=3, **settings)
    contexts = [context("train", step=step) for step in (1, 2, 3, 4, 9)] + [context("static")]
    taken = [layer(tokens(), each)[1].mask_SE.sum(dim=0) for each in contexts]
    assert [set((rows_E * EXPERTS / (SAMPLES * TOKENS)).tolist()) for rows_E in taken] == [
        {4.0},
        {3.0},
        {2.0},
        {1.0},
        {1.0},
        {1.0},
    ]


@pytest.mark.parametrize(
    "settings, samples",
    [
        ({"pool": "rank"}, 9),
        ({"pool": "sample"}, 16),
        ({"pool": "sample"}, 8),
        ({"router": "expert_choice"}, 8),
    ],
)
def test_experts_in_fp8_take_a_multiple_of_16_rows(settings, samples):
    layer = make_layer(capacity=1.5, **settings)
    # Without the package no layer in FP8 can be built; its router can decide as if.
    layer.router.moe = replace(layer.router.moe, backend="transformer_engine", precision="fp8_current")
    _, routing = layer(tokens(num_samples=samples), context(num_samples=samples))
    exact = 1.5 * samples * TOKENS / EXPERTS
    assert routing.mask_SE.sum(dim=0).tolist() == [routing.rows_per_expert] * EXPERTS
    assert routing.rows_per_expert % 16 == 0 and exact - 16 < routing.rows_per_expert <= exact


def test_a_pool_too_small_for_16_rows_an_expert_in_fp8_is_an_error():
    layer = make_layer()
    layer.router.moe = replace(layer.router.moe, backend="transformer_engine", precision="fp8_current")
    with pytest.raises(
        ValueError,
        match=r"6 tokens an expert, rounded down to a multiple of 16 for moe.precision; expected at least 16",
    ):
        layer(tokens(), context())


@pytest.mark.parametrize("router", ["expert_choice", "token_choice"])
def test_predictor_rules_need_a_router_with_a_predictor(router):
    with pytest.raises(
        ValueError, match=r"sampling.selection is 'threshold' but moe.router '.*' has no capacity predictor"
    ):
        make_layer(router=router)(tokens(), context("threshold"))
