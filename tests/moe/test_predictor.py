import random

import numpy as np
import pytest
import torch

from diffmoe_scale.moe.predictor import spread_tokens
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, WIDTH, context, make_layer, tokens
from tests.ranks import run_on_ranks


def test_predictor_loss_leaves_the_tokens_and_the_router_alone():
    layer, x_SD = make_layer(), tokens().requires_grad_()
    _, routing = layer(x_SD, context())
    routing.aux_losses["predictor"].backward()
    assert x_SD.grad is None and layer.router.weight.grad is None
    assert layer.router.predictor.hidden.weight.grad.abs().sum() > 0


def test_predictor_loss_is_the_weighted_mean_binary_cross_entropy():
    layer, x_SD = make_layer(predictor_weight=0.5), tokens()
    _, routing = layer(x_SD, context())
    p_SE = layer.router.predictor(x_SD).sigmoid()
    expected = -torch.where(routing.mask_SE, p_SE.log(), (1 - p_SE).log()).mean()
    torch.testing.assert_close(routing.aux_losses["predictor"], 0.5 * expected)


def test_kth_probability_is_the_kth_largest_of_each_expert():
    layer, x_SD = make_layer(), tokens()
    _, routing = layer(x_SD, context())
    k = x_SD.shape[0] // EXPERTS
    torch.testing.assert_close(
        routing.statistic_X,
        layer.router.predictor(x_SD).sigmoid().sort(dim=0, descending=True).values[k - 1],
    )


def test_forward_changes_no_buffer():
    layer = make_layer()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(tokens(), context())
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())


def test_a_share_of_the_tokens_is_drawn_evenly_over_samples_and_steps():
    draws = random.Random(0)
    for _ in range(300):
        num_samples, each, share = draws.randint(1, 5), draws.randint(1, 40), draws.uniform(0.01, 1)
        count, taught = max(1, round(share * each)), torch.zeros(num_samples, each)
        for step in range(each):
            place = spread_tokens(
                share,
                num_samples=num_samples,
                num_tokens=num_samples * each,
                first=step,
                device=torch.device("cpu"),
            )
            assert len(place.unique()) == num_samples * count
            assert (place // each).bincount(minlength=num_samples).tolist() == [count] * num_samples
            taught.flatten()[place] += 1
        assert torch.equal(taught, torch.full_like(taught, count))


@pytest.mark.parametrize("pool", ["rank", "sample"])
def test_a_predictor_that_learns_from_a_share_of_the_tokens_leaves_the_layer_as_it_is(pool):
    x_SD = tokens()
    (y_SD, routing), (y_of_share_SD, of_share) = (
        make_layer(pool=pool, predictor_tokens=share)(x_SD, context(step=5)) for share in (1, 0.5)
    )
    assert torch.equal(y_SD, y_of_share_SD) and torch.equal(routing.mask_SE, of_share.mask_SE)
    assert routing.rows_per_expert == of_share.rows_per_expert


def test_loss_and_threshold_of_a_share_are_those_of_the_drawn_tokens():
    layer, x_SD = make_layer(predictor_tokens=0.5), tokens()
    _, routing = layer(x_SD, context(step=5))
    # Half of 8 tokens, from token 5, 6, 7 of a sample on.
    place = [8 * sample + (5 + sample + 2 * i) % 8 for sample in range(SAMPLES) for i in range(4)]
    p_TE = layer.router.predictor(x_SD[place]).sigmoid()
    expected = -torch.where(routing.mask_SE[place], p_TE.log(), (1 - p_TE).log()).mean()
    torch.testing.assert_close(routing.aux_losses["predictor"], expected)
    k = len(x_SD) // EXPERTS // 2
    torch.testing.assert_close(routing.statistic_X, p_TE.sort(dim=0, descending=True).values[k - 1].detach())


def pooled_on_rank(parallel: ParallelContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    layer = make_layer(groups=parallel.megatron_groups, pool="data_parallel", predictor_tokens=0.25)
    x_SD = tokens(seed=parallel.rank)
    _, routing = layer(x_SD, context())
    place = [8 * sample + (sample + 4 * i) % 8 for sample in range(SAMPLES) for i in range(2)]
    taught_TE = layer.router.predictor(x_SD[place]).sigmoid().detach()
    return taught_TE.numpy(), routing.statistic_X.numpy(), routing.mask_SE.numpy()


def test_a_pool_of_two_ranks_finds_the_threshold_of_the_tokens_that_both_draw():
    first, second = run_on_ranks(pooled_on_rank, 2)
    taught_TE = np.sort(np.concatenate([first[0], second[0]]), axis=0)[::-1]
    k = 2 * SAMPLES * TOKENS // EXPERTS
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(first[1], taught_TE[k // 4 - 1], rtol=1e-6)
    assert (first[2].sum(0) + second[2].sum(0)).tolist() == [k] * EXPERTS


def test_a_narrow_predictor_has_a_hidden_layer_of_its_share():
    predictor = make_layer(predictor_width=0.25).router.predictor
    assert predictor.hidden.weight.shape == (WIDTH // 4, WIDTH)
    # nn.Linear's bound by fan-in, which is D for the hidden layer and D / 4 for the output.
    for linear, fan_in in ((predictor.hidden, WIDTH), (predictor.output, WIDTH // 4)):
        assert 0.8 * fan_in**-0.5 < float(linear.weight.detach().abs().max()) <= fan_in**-0.5


def test_a_predictor_without_a_hidden_layer_is_refused():
    with pytest.raises(ValueError, match=r"moe.predictor_width is 0.01, .*at least 0.0625"):
        make_layer(predictor_width=0.01)


def test_a_narrow_predictor_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"moe.predictor_width is 0.5; expected 1 for moe.router"):
        make_layer(router="token_choice", predictor_width=0.5)


def test_in_bf16_only_the_result_of_the_hidden_layer_is_rounded():
    predictor, x_SD = make_layer().router.predictor.to(torch.bfloat16), tokens().to(torch.bfloat16)
    logits_SE = predictor(x_SD)
    hidden_SD = torch.nn.functional.linear(
        x_SD.double(), predictor.hidden.weight.double(), predictor.hidden.bias.double()
    )
    hidden_SD = torch.nn.functional.silu(hidden_SD.bfloat16().double())
    exact_SE = torch.nn.functional.linear(
        hidden_SD, predictor.output.weight.double(), predictor.output.bias.double()
    )
    assert logits_SE.dtype == torch.float32
    # One step of bf16 (2^-8) of a hidden number, where a sum lies at the border between two.
    torch.testing.assert_close(logits_SE.double(), exact_SE, rtol=0, atol=2e-3)
