import numpy as np
import pytest
import torch

from diffmoe_scale.moe.thresholds import untrained_thresholds, update_routers
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, context, make_layer, tokens
from tests.ranks import run_on_ranks


def test_bias_corrected_threshold_of_constant_probabilities_is_that_constant():
    layer = make_layer(threshold_bias_correction=True)
    for _ in range(3):
        update_routers([layer], [torch.full((1, EXPERTS), 0.3)], None)
        torch.testing.assert_close(layer.router.predictor.threshold(), torch.full((EXPERTS,), 0.3))


def test_plain_threshold_is_the_moving_average_from_zero():
    layer = make_layer(threshold_bias_correction=False, threshold_decay=0.9)
    for probability in (0.5, 0.2):
        update_routers([layer], [torch.full((1, EXPERTS), probability)], None)
    torch.testing.assert_close(
        layer.router.predictor.threshold(), torch.full((EXPERTS,), 0.9 * 0.1 * 0.5 + 0.1 * 0.2)
    )


def test_thresholds_begin_at_zero_and_stay_fp32_in_a_bf16_model():
    layer = make_layer()
    assert layer.router.predictor.threshold().tolist() == [0.0] * EXPERTS
    update_routers([layer], [torch.full((1, EXPERTS), 0.123456789)], None)
    before = layer.router.predictor.threshold()
    layer.to(torch.bfloat16)
    assert layer.router.predictor.hidden.weight.dtype == torch.bfloat16
    assert torch.equal(layer.router.predictor.threshold(), before)


def test_routers_without_a_predictor_are_left_alone():
    layers = [make_layer(router="expert_choice") for _ in range(2)]
    update_routers(
        layers, [torch.stack([layer(tokens(), context())[1].statistic_X for layer in layers])], None
    )


def thresholds_after_one_update(parallel: ParallelContext) -> np.ndarray:
    layers = [make_layer(threshold_bias_correction=False, threshold_decay=0.5, layer_index=i) for i in (1, 3)]
    update_routers(
        layers, [torch.tensor([[0.1], [0.3]]).expand(2, EXPERTS) + 0.2 * parallel.rank], parallel.dp_group
    )
    return torch.stack([layer.router.predictor.threshold() for layer in layers]).numpy()


def test_thresholds_of_all_ranks_move_by_the_mean_over_ranks():
    for threshold_LE in run_on_ranks(thresholds_after_one_update, 2):
        np.testing.assert_allclose(threshold_LE, np.repeat([[0.1], [0.2]], EXPERTS, axis=1), rtol=1e-6)


@pytest.mark.parametrize(("is_corrected", "needed"), [(True, 1), (False, 30)])
def test_thresholds_are_untrained_before_their_average_has_left_zero(is_corrected: bool, needed: int) -> None:
    layer = make_layer(threshold_bias_correction=is_corrected, threshold_decay=0.9)
    predictor = layer.router.predictor
    predictor.threshold_steps.fill_(needed - 1)
    assert f"trained for {needed - 1} step" in untrained_thresholds([layer])
    predictor.threshold_steps.fill_(needed)
    assert untrained_thresholds([layer]) == untrained_thresholds([]) == ""
