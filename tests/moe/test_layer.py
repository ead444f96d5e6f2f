"""The whole layer against the reference implementation's numbers."""

from pathlib import Path
from typing import Any  # keyword arguments of comparisons

import numpy as np
import pytest
import torch
from torch import nn

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import RoutingContext, Rule, Selection
from diffmoe_scale.moe.thresholds import update_routers
from tests.moe.layers import EXPERTS, context, make_layer, tokens

PARITY = Path(__file__).parents[1] / "reference" / "layer.npz"
# fp32 sums in another order.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def reference_names(layer: MoELayer) -> dict[str, nn.Parameter]:
    """Our parameters under the reference implementation's names."""
    predictor = layer.router.predictor
    sides = {"w_in": "fc1.weight", "b_in": "fc1.bias", "w_out": "fc2.weight", "b_out": "fc2.bias"}
    experts = {
        f"{name.rsplit('.', 1)[0]}.{sides[name.rsplit('.', 1)[1]]}": parameter
        for name, parameter in layer.expert_parameters()
    }
    return experts | {
        "gate_weight": layer.router.weight,
        "capacity_predictor.0.weight": predictor.hidden.weight,
        "capacity_predictor.0.bias": predictor.hidden.bias,
        "capacity_predictor.2.weight": predictor.output.weight,
        "capacity_predictor.2.bias": predictor.output.bias,
    }


def reference_layer(arrays: dict[str, np.ndarray], backend: str) -> MoELayer:
    layer = make_layer(width=32, backend=backend, threshold_bias_correction=False)
    with torch.no_grad():
        for name, tensor in reference_names(layer).items():
            tensor.copy_(torch.from_numpy(arrays[f"state/{name}"]))
    return layer


def reference_call(layer: MoELayer, x_BSD: np.ndarray, rule: Rule):
    x_SD = torch.from_numpy(x_BSD).flatten(0, 1).requires_grad_()
    y_SD, routing = layer(x_SD, RoutingContext(x_BSD.shape[0], x_SD, torch.zeros(3, 32), Selection(rule)))
    return x_SD, y_SD.unflatten(0, x_BSD.shape[:2]), routing


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_training_calls_equal_the_reference(backend):
    arrays = dict(np.load(PARITY))
    layer = reference_layer(arrays, backend)
    threshold_E = np.zeros(EXPERTS)
    for i in range(5):
        _, y, routing = reference_call(layer, arrays[f"train/{i}/x"], "train")
        update_routers([layer], [routing.statistic_X.unsqueeze(0)], None)
        np.testing.assert_allclose(y.detach(), arrays[f"train/{i}/y"], **CLOSE)
        assert np.array_equal(routing.mask_SE.reshape(3, 16, EXPERTS), arrays[f"train/{i}/mask"].astype(bool))
        # From the recorded logits (DiffMoE eq. 17): the recorded `threshold_after` are five views of one
        # buffer, changed since.
        probability_SE = 1 / (
            1 + np.exp(-arrays[f"train/{i}/predictor_logits"].reshape(-1, EXPERTS).astype(np.float64))
        )
        threshold_E = (
            0.95 * threshold_E + 0.05 * np.sort(probability_SE, axis=0)[-(len(probability_SE) // EXPERTS)]
        )
        np.testing.assert_allclose(layer.router.predictor.threshold(), threshold_E, **CLOSE)


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_gradients_equal_the_reference(backend):
    arrays = dict(np.load(PARITY))
    layer = reference_layer(arrays, backend)
    x_SD, y, routing = reference_call(layer, arrays["train/0/x"], "train")
    np.testing.assert_allclose(
        routing.aux_losses["predictor"].detach(), arrays["train/0/predictor_loss"], **CLOSE
    )
    ((y * torch.from_numpy(arrays["train/0/grad_y"])).sum() + routing.aux_losses["predictor"]).backward()
    np.testing.assert_allclose(x_SD.grad.reshape(3, 16, 32), arrays["train/0/grad_x"], **CLOSE)
    for name, tensor in reference_names(layer).items():
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad, arrays[f"train/0/grad/{name}"], **CLOSE, err_msg=name)


def test_inference_by_count_equals_the_reference():
    arrays = dict(np.load(PARITY))
    layer = reference_layer(arrays, "grouped")
    layer.router.predictor.expert_threshold_E.copy_(torch.from_numpy(arrays["eval/threshold"]))
    for i in range(3):
        np.testing.assert_allclose(
            reference_call(layer, arrays[f"eval/{i}/x"], "threshold_count")[1].detach(),
            arrays[f"eval/{i}/y"],
            **CLOSE,
        )


def test_output_is_the_gated_sum_of_the_experts_that_took_a_token():
    layer, x_SD = make_layer(), tokens()
    y_SD, routing = layer(x_SD, context())
    everything_SED = torch.stack(
        [
            layer.experts(x_SD, [len(x_SD) if j == i else 0 for j in range(EXPERTS)])[0]
            for i in range(EXPERTS)
        ],
        dim=1,
    )
    torch.testing.assert_close(y_SD, (everything_SED * routing.gate_SE.unsqueeze(-1)).sum(dim=1), **CLOSE)
    assert torch.equal(y_SD.eq(0).all(dim=1), ~routing.mask_SE.any(dim=1))


def test_recomputation_in_the_backward_pass_changes_nothing():
    grads = []
    for is_recomputed in (False, True):
        layer, x_SD = make_layer(), tokens().requires_grad_()
        arguments = x_SD, context()
        y_SD, _ = (
            torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
            if is_recomputed
            else layer(*arguments)
        )
        y_SD.square().sum().backward()
        grads.append([x_SD.grad, *(parameter.grad for _, parameter in layer.expert_parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize("gamma, taken", [(1.0, 0), (0.0, EXPERTS)])
def test_tokens_may_be_taken_by_no_expert_or_by_all(backend, gamma, taken):
    layer, x_SD = make_layer(backend=backend), tokens().requires_grad_()
    y_SD, routing = layer(x_SD, context("interval", gamma=gamma))
    assert routing.mask_SE.sum(dim=1).tolist() == [taken] * len(x_SD) and routing.metrics["capacity"] == taken
    assert bool(y_SD.eq(0).all()) == (taken == 0)
    y_SD.sum().backward()
    assert all(parameter.grad is not None for _, parameter in layer.expert_parameters())


def test_fewer_tokens_than_experts_are_an_error():
    with pytest.raises(ValueError, match=r"moe.num_experts is 16 for a pool of 8 tokens"):
        make_layer(num_experts=16)(tokens(num_samples=1), context(num_samples=1))
