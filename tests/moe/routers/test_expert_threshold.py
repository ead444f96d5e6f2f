"""Thresholds on the score itself, in training and at inference."""

from dataclasses import replace
from typing import Any  # settings of any type are passed on to MoEConfig

import pytest
import torch

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Rule
from diffmoe_scale.moe.thresholds import update_routers
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, context, make_layer, tokens


def by_threshold(**settings: Any) -> MoELayer:
    return make_layer(**({"router": "expert_threshold", "gate": "sigmoid"} | settings))


def learn(layer: MoELayer, x_SD: torch.Tensor, num_samples: int, step: int) -> torch.Tensor:
    routing = layer(x_SD, context(num_samples=num_samples, step=step))[1]
    update_routers([layer], [routing.statistic_X.unsqueeze(0)], None)
    return routing.mask_SE


def test_an_expert_takes_what_is_over_its_average_and_weighs_it_by_sigmoid() -> None:
    layer, x_SD = by_threshold(), tokens()
    layer.router.limit.set_threshold(torch.tensor([0.5, -0.5, 1.0, 9.0]))
    logits_SE = x_SD @ layer.router.weight.T
    for around in (context(), context("threshold")):
        _, routing = layer(x_SD, around)
        for s in range(len(x_SD)):
            for e, limit in enumerate([0.5, -0.5, 1.0, 9.0]):
                is_taken = float(logits_SE[s, e]) > limit
                expected = float(logits_SE[s, e].sigmoid()) if is_taken else 0.0
                assert routing.gate_SE[s, e].item() == pytest.approx(expected, rel=1e-5)
    assert not routing.mask_SE[:, 3].any()


@pytest.mark.parametrize("pool", ["rank", "sample"])
def test_the_average_is_of_the_kth_largest_logit_corrected_for_its_start(pool: str) -> None:
    layer = by_threshold(pool=pool, threshold_decay=0.9)
    size = TOKENS if pool == "sample" else SAMPLES * TOKENS
    average = [0.0] * EXPERTS
    for step in range(1, 4):
        x_SD = tokens(seed=step)
        for e in range(EXPERTS):
            logit_S = (x_SD @ layer.router.weight[e]).tolist()
            parts = [sorted(logit_S[i : i + size], reverse=True) for i in range(0, len(logit_S), size)]
            kth = sum(part[size // EXPERTS - 1] for part in parts) / len(parts)
            average[e] = 0.9 * average[e] + 0.1 * kth
        learn(layer, x_SD, SAMPLES, step)
        expected = [value / (1 - 0.9**step) for value in average]
        assert layer.router.limit.threshold().tolist() == pytest.approx(expected, rel=1e-5)


def test_a_step_uses_the_thresholds_of_the_step_before() -> None:
    layer, x_SD = by_threshold(), tokens()
    learn(layer, x_SD, SAMPLES, 1)
    before_E = layer.router.limit.threshold().clone()
    mask_SE = learn(layer, tokens(seed=1), SAMPLES, 2)
    assert torch.equal(mask_SE, tokens(seed=1) @ layer.router.weight.T > before_E)


@pytest.mark.parametrize("pool", ["rank", "sample"])
def test_in_the_first_steps_experts_take_the_top_k_of_the_pool(pool: str) -> None:
    layer, x_SD = by_threshold(threshold_warmup_steps=2, pool=pool), tokens()
    layer.router.limit.set_threshold(torch.full((EXPERTS,), 99.0))
    for step, is_first in ((1, True), (2, True), (3, False), (None, False)):
        _, routing = layer(x_SD, context(step=step))
        rows = SAMPLES * TOKENS // EXPERTS
        assert routing.mask_SE.sum(dim=0).tolist() == [rows * is_first] * EXPERTS
        assert routing.rows_per_expert == (rows if is_first else None)
    layer.router.limit.set_threshold(torch.full((EXPERTS,), -99.0))
    logits_SE = x_SD @ layer.router.weight.T
    size = TOKENS if pool == "sample" else SAMPLES * TOKENS
    mask_SE = layer(x_SD, context(step=1))[1].mask_SE
    for first in range(0, len(x_SD), size):
        part_SE = logits_SE[first : first + size]
        kth_E = part_SE.sort(dim=0, descending=True).values[size // EXPERTS - 1]
        assert torch.equal(mask_SE[first : first + size], part_SE >= kth_E)


def test_loads_of_alike_tokens_are_equal_within_sampling_error() -> None:
    layer = by_threshold(threshold_decay=0.95)
    for step in range(1, 60):
        learn(layer, tokens(seed=step, num_samples=32), 32, step)
    num_samples = 256
    load_E = layer(tokens(seed=999, num_samples=num_samples), context("threshold", num_samples=num_samples))[
        1
    ].metrics["load_E"]
    # The standard deviation of a load of 1/E: sqrt(E - 1) / sqrt(tokens), and that of the threshold itself.
    assert load_E.tolist() == pytest.approx([1.0] * EXPERTS, abs=0.12)


def test_a_number_added_to_an_experts_logits_moves_its_threshold_and_no_token() -> None:
    plain, moved = by_threshold(), by_threshold()
    with torch.no_grad():
        moved.router.weight[1, 0] += 1.5  # tokens have 1 there
    for step in range(1, 5):
        x_SD = tokens(seed=step)
        x_SD[:, 0] = 1.0
        assert torch.equal(learn(plain, x_SD, SAMPLES, step), learn(moved, x_SD, SAMPLES, step)) or step == 1
    difference_E = moved.router.limit.threshold() - plain.router.limit.threshold()
    assert difference_E.tolist() == pytest.approx([0, 1.5, 0, 0], abs=1e-5)


def test_thresholds_of_any_number_of_equal_micro_batches_are_alike() -> None:
    parts = [torch.randn(1, EXPERTS) for _ in range(4)]
    one, four = by_threshold(), by_threshold()
    update_routers([one], [torch.stack(parts).mean(dim=0)], None)
    update_routers([four], parts, None)
    torch.testing.assert_close(one.router.limit.threshold(), four.router.limit.threshold())


def test_a_sample_depends_on_its_batch_in_the_top_k_alone() -> None:
    layer, x_SD = by_threshold(), tokens()
    layer.router.limit.set_threshold(torch.full((EXPERTS,), 0.2))
    rules: tuple[Rule, ...] = ("train", "threshold", "interval", "static")
    for rule in rules:
        y_SD, _ = layer(x_SD, context(rule))
        parts = [layer(part, context(rule, num_samples=1))[0] for part in x_SD.split(TOKENS)]
        assert torch.allclose(y_SD, torch.cat(parts), atol=1e-6) == (rule != "static")


def test_calibrated_thresholds_decide_as_the_probability_of_the_same_logit() -> None:
    layer, x_SD = by_threshold(), tokens()
    gamma_E = torch.tensor([0.2, 0.4, 0.6, 0.8])
    layer.router.calibrate(gamma_E)
    mask_SE = layer(x_SD, context("threshold"))[1].mask_SE
    assert torch.equal(mask_SE, layer.router.decision_logits(x_SD, context()).sigmoid() > gamma_E)


def test_what_does_not_fit_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"moe.gate is 'softmax'; expected 'sigmoid' or 'identity'"):
        replace(by_threshold().router.moe, gate="softmax")
    with pytest.raises(ValueError, match="choose 'threshold' or 'interval' or 'static'"):
        by_threshold()(tokens(), context("threshold_count"))
