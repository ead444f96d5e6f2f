import numpy as np
import pytest
import torch

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.routing import average_capacity
from diffmoe_scale.moe.selection import training_capacity
from diffmoe_scale.moe.thresholds import update_thresholds
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, context, make_layer, tokens
from tests.ranks import run_on_ranks


def test_capacity_goes_linearly_from_start_to_end_and_stays_there():
    config = MoEConfig(capacity=2.0, capacity_start=4.0, capacity_steps=4)
    assert [training_capacity(config, step) for step in (1, 2, 3, 4, 5, 100, None)] == [
        4.0,
        3.5,
        3.0,
        2.5,
        2.0,
        2.0,
        2.0,
    ]


def test_capacity_without_a_schedule_is_the_same_in_every_step():
    assert [training_capacity(MoEConfig(capacity=1.5), step) for step in (1, 2, 1000, None)] == [1.5] * 4


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"capacity_steps": 5}, r"moe.capacity_start is 0.0; expected above 0 and at most moe.num_experts"),
        ({"capacity_start": 2.0}, r"moe.capacity_start is 2.0; .* exactly when moe.capacity_steps is set"),
        (
            {"capacity_steps": 5, "capacity_start": 9.0},
            r"moe.capacity_start is 9.0; .* at most moe.num_experts \(8\)",
        ),
        ({"capacity_steps": -1}, r"moe.capacity_steps is -1; expected 0 \(no schedule\) or more"),
        (
            {"capacity_steps": 5, "capacity_start": 2.0, "router": "token_choice"},
            r"moe.capacity_steps is 5; expected 0 for moe.router 'token_choice'",
        ),
    ],
)
def test_half_a_schedule_is_an_error(settings, match):
    with pytest.raises(ValueError, match=match):
        MoEConfig(**settings)


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
        routing.kth_probability_E,
        layer.router.predictor(x_SD).sigmoid().sort(dim=0, descending=True).values[k - 1],
    )


def test_forward_changes_no_buffer():
    layer = make_layer()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(tokens(), context())
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())


def test_bias_corrected_threshold_of_constant_probabilities_is_that_constant():
    layer = make_layer(threshold_bias_correction=True)
    for _ in range(3):
        update_thresholds([layer], torch.full((1, EXPERTS), 0.3), None)
        torch.testing.assert_close(layer.router.predictor.threshold(), torch.full((EXPERTS,), 0.3))


def test_plain_threshold_is_the_moving_average_from_zero():
    layer = make_layer(threshold_bias_correction=False, threshold_decay=0.9)
    for probability in (0.5, 0.2):
        update_thresholds([layer], torch.full((1, EXPERTS), probability), None)
    torch.testing.assert_close(
        layer.router.predictor.threshold(), torch.full((EXPERTS,), 0.9 * 0.1 * 0.5 + 0.1 * 0.2)
    )


def test_thresholds_begin_at_zero_and_stay_fp32_in_a_bf16_model():
    layer = make_layer()
    assert layer.router.predictor.threshold().tolist() == [0.0] * EXPERTS
    update_thresholds([layer], torch.full((1, EXPERTS), 0.123456789), None)
    before = layer.router.predictor.threshold()
    layer.to(torch.bfloat16)
    assert layer.router.predictor.hidden.weight.dtype == torch.bfloat16
    assert torch.equal(layer.router.predictor.threshold(), before)


def test_routers_without_a_predictor_are_left_alone():
    layers = [make_layer(router="expert_choice") for _ in range(2)]
    update_thresholds(
        layers, torch.stack([layer(tokens(), context())[1].kth_probability_E for layer in layers]), None
    )


def test_average_capacity_is_the_mean_over_layers():
    routings = [make_layer(capacity=capacity)(tokens(), context())[1] for capacity in (1.0, 2.0)]
    assert average_capacity(routings).item() == pytest.approx(1.5)


def thresholds_after_one_update(parallel: ParallelContext) -> np.ndarray:
    layers = [make_layer(threshold_bias_correction=False, threshold_decay=0.5, layer_index=i) for i in (1, 3)]
    update_thresholds(
        layers, torch.tensor([[0.1], [0.3]]).expand(2, EXPERTS) + 0.2 * parallel.rank, parallel.dp_group
    )
    return torch.stack([layer.router.predictor.threshold() for layer in layers]).numpy()


def test_thresholds_of_all_ranks_move_by_the_mean_over_ranks():
    for threshold_LE in run_on_ranks(thresholds_after_one_update, 2):
        np.testing.assert_allclose(threshold_LE, np.repeat([[0.1], [0.2]], EXPERTS, axis=1), rtol=1e-6)
