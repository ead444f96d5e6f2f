import pytest
import torch

from diffmoe_scale.moe.routing import average_capacity
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, context, make_layer, tokens


def test_load_is_tokens_taken_over_the_fair_share():
    _, routing = make_layer()(tokens(), context("interval"))
    torch.testing.assert_close(
        routing.metrics["load_E"], routing.mask_SE.sum(dim=0) / (SAMPLES * TOKENS / EXPERTS)
    )
    torch.testing.assert_close(routing.metrics["capacity"], routing.mask_SE.sum() / (SAMPLES * TOKENS))


def test_average_capacity_is_the_mean_over_layers():
    routings = [make_layer(capacity=capacity)(tokens(), context())[1] for capacity in (1.0, 2.0)]
    assert average_capacity(routings).item() == pytest.approx(1.5)
