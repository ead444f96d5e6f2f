import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.moe.routing import kth_largest, select_counted, select_experts, select_top, tokens_per_expert
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, WIDTH, context, make_layer, tokens

# Few distinct values: most pools hold ties.
POOLS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 24).flatmap(lambda n: st.lists(st.lists(st.integers(-2, 2), min_size=n, max_size=n), min_size=rows, max_size=rows))
)


def best_by_loop(row: list[int], k: int) -> list[bool]:
    winners = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    return [i in winners for i in range(len(row))]


@settings(max_examples=60, deadline=None)
@given(POOLS, st.integers(1, 24))
def test_top_selection_takes_the_k_best_and_the_first_of_equals(pool, k):
    k = min(k, len(pool[0]))
    assert select_top(torch.tensor(pool, dtype=torch.float32), k).tolist() == [best_by_loop(row, k) for row in pool]


@settings(max_examples=60, deadline=None)
@given(POOLS, st.data())
def test_counted_selection_takes_a_number_of_its_own_for_each_expert(pool, data):
    counts = [data.draw(st.integers(0, len(pool[0]))) for _ in pool]
    mask = select_counted(torch.tensor(pool, dtype=torch.float32), torch.tensor(counts))
    assert mask.tolist() == [best_by_loop(row, count) for row, count in zip(pool, counts, strict=True)]


@settings(max_examples=30, deadline=None)
@given(POOLS, st.integers(1, 24))
def test_kth_largest_is_the_kth_of_a_descending_sort(pool, k):
    k = min(k, len(pool[0]))
    assert kth_largest(torch.tensor(pool, dtype=torch.float32), k).tolist() == [sorted(row, reverse=True)[k - 1] for row in pool]


def test_token_choice_takes_the_first_of_equal_experts():
    assert select_experts(torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]]), 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


@pytest.mark.parametrize("capacity, num_tokens, num_experts", [(1.0, 3, 4), (2.0, 3, 4), (0.1, 16, 4)])
def test_a_pool_too_small_for_its_experts_is_an_error(capacity, num_tokens, num_experts):
    with pytest.raises(ValueError, match=r"expected at least one token an expert"):
        tokens_per_expert(capacity, num_tokens, num_experts)


@pytest.mark.parametrize("capacity", [0.5, 1.0, 1.3, 2.0])
def test_each_expert_of_diffmoe_takes_k_tokens_of_the_whole_pool(capacity):
    _, routing = make_layer(capacity=capacity)(tokens(), context())
    assert routing.mask_SE.sum(dim=0).tolist() == [math.floor(capacity * SAMPLES * TOKENS / EXPERTS)] * EXPERTS


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "identity"])
def test_experts_choose_by_and_weigh_with_the_named_function_of_the_logits(gate):
    layer, x_SD = make_layer(gate=gate), tokens()
    _, routing = layer(x_SD, context())
    logits_SE = x_SD @ layer.router.weight.T
    expected_SE = {"softmax": logits_SE.softmax(dim=-1), "sigmoid": logits_SE.sigmoid(), "identity": logits_SE}[gate]
    torch.testing.assert_close(routing.gate_SE, expected_SE * routing.mask_SE)
    for expert in range(EXPERTS):
        best = sorted(range(len(x_SD)), key=lambda token: -float(expected_SE[token, expert]))[: len(x_SD) // EXPERTS]
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
    for router, rule in (("diffmoe", "threshold"), ("diffmoe", "static"), ("expert_choice", "static"), ("token_choice", "static")):
        _, routing = make_layer(router=router)(tokens(), context(rule))
        assert routing.aux_losses == {} and routing.kth_probability_E.numel() == 0


def test_decoupled_router_is_a_linear_map_of_token_and_timestep_embedding():
    layer = make_layer(router_input="decoupled", gate="identity", capacity=EXPERTS)
    unmodulated_SD, time_BD = tokens(seed=1), torch.randn(SAMPLES, WIDTH)
    _, routing = layer(tokens(), context(unmodulated_SD=unmodulated_SD, time_BD=time_BD))
    both = torch.cat([unmodulated_SD, time_BD.repeat_interleave(TOKENS, dim=0)], dim=1)
    torch.testing.assert_close(routing.gate_SE, both @ torch.cat([layer.router.weight, layer.router.time_weight], dim=1).T)


@pytest.mark.parametrize("rule, is_independent", [("threshold", True), ("interval", True), ("threshold_count", False), ("static", False)])
def test_only_the_predictor_alone_makes_a_sample_independent_of_its_batch(rule, is_independent):
    layer, x_SD = make_layer(threshold_bias_correction=False), tokens()
    layer.router.predictor.expert_threshold_E.fill_(0.5)
    y_SD, _ = layer(x_SD, context(rule))
    one_by_one = torch.cat([layer(sample, context(rule, num_samples=1))[0] for sample in x_SD.split(TOKENS)])
    # Same arithmetic over other numbers of rows: round-off only.
    assert torch.allclose(y_SD, one_by_one, atol=1e-6) == is_independent


def test_load_is_tokens_taken_over_the_fair_share():
    _, routing = make_layer()(tokens(), context("interval"))
    torch.testing.assert_close(routing.metrics["load_E"], routing.mask_SE.sum(dim=0) / (SAMPLES * TOKENS / EXPERTS))
    torch.testing.assert_close(routing.metrics["capacity"], routing.mask_SE.sum() / (SAMPLES * TOKENS))


def test_nan_scores_are_an_error_that_names_the_block():
    with pytest.raises(RuntimeError, match=r"router of block 7 got NaN"):
        make_layer(layer_index=7)(tokens().index_fill(0, torch.tensor([5]), math.nan), context())


@pytest.mark.parametrize("router", ["expert_choice", "token_choice"])
def test_predictor_rules_need_a_router_with_a_predictor(router):
    with pytest.raises(ValueError, match=r"sampling.selection is 'threshold' but moe.router '.*' has no capacity predictor"):
        make_layer(router=router)(tokens(), context("threshold"))
