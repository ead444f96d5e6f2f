"""The whole layer against the reference implementation's numbers, and many processes against one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import RoutingContext, Selection
from diffmoe_scale.moe.thresholds import update_thresholds
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, context, make_layer, tokens
from tests.ranks import run_on_ranks

PARITY = Path(__file__).parents[1] / "reference" / "layer.npz"
# fp32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def reference_names(layer: MoELayer) -> dict[str, Tensor]:
    """Our tensors under the reference implementation's names."""
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


def reference_call(layer: MoELayer, x_BSD: np.ndarray, rule: str):
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
        update_thresholds([layer], routing.kth_probability_E.unsqueeze(0), None)
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
            layer.experts(
                x_SD,
                torch.tensor([len(x_SD) if j == i else 0 for j in range(EXPERTS)]),
                torch.ones(len(x_SD)),
            )[0]
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
    with pytest.raises(ValueError, match=r"8 tokens compete for moe.num_experts 16"):
        make_layer(num_experts=16)(tokens(num_samples=1), context(num_samples=1))


# Expert parallel against one process. Tokens of rank r are larger by r: routing is uneven between ranks.
POOLS = ("rank", "expert_parallel", "data_parallel")
ROUTERS = [{"pool": pool, "shared_experts": 1} for pool in POOLS] + [
    {"pool": "sample"},
    {"router": "expert_choice"},
    {"router": "token_choice", "top_k": 2},
]


# With gamma 1 no rank has a row for any expert.
INFERENCE = [
    ("threshold", 0.5),
    ("interval", 0.5),
    ("interval", 1.0),
    ("threshold_count", 0.5),
    ("static", 0.5),
]


def rank_tokens(rank: int) -> tuple[Tensor, Tensor]:
    return tokens(seed=10 + rank) * (1 + 2 * rank), tokens(seed=20 + rank)


def set_uneven_thresholds(layer: MoELayer) -> None:
    """No token for expert 0, all for expert 1, and the others in between."""
    layer.router.predictor.expert_threshold_E.copy_(torch.tensor([2.0, -1.0, 0.5, 0.45]))


def train_on_rank(parallel: ParallelContext, settings: dict) -> dict[str, np.ndarray]:
    layer = make_layer(groups=parallel.megatron_groups, **settings)
    x_SD, grad_y_SD = rank_tokens(parallel.rank)
    x_SD.requires_grad_()
    y_SD, routing = layer(x_SD, context())
    y_SD.backward(grad_y_SD)
    result = {
        "y": y_SD.detach(),
        "mask": routing.mask_SE,
        "kth": routing.kth_probability_E,
        "grad/x": x_SD.grad,
        "grad/router": layer.router.weight.grad,
    }
    return {
        name: tensor.numpy()
        for name, tensor in (
            result | {f"grad/{name}": p.grad for name, p in layer.expert_parameters()}
        ).items()
    }


def infer_on_rank(parallel: ParallelContext, settings: dict) -> dict[str, np.ndarray]:
    layer = make_layer(groups=parallel.megatron_groups, threshold_bias_correction=False, **settings)
    set_uneven_thresholds(layer)
    with torch.no_grad():
        return {
            (rule, gamma): layer(rank_tokens(parallel.rank)[0], context(rule, gamma=gamma))[0].numpy()
            for rule, gamma in INFERENCE
        }


def train_and_infer_on_rank(
    parallel: ParallelContext,
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return [train_on_rank(parallel, settings) for settings in ROUTERS], infer_on_rank(parallel, {})


def train_alone(ranks: list[int], expert_ranks: list[int], settings: dict) -> dict[str, np.ndarray]:
    """One process with the tokens of `ranks` as its pool; the loss counts the tokens of `expert_ranks`."""
    layer = make_layer(**(settings | {"pool": "sample" if settings.get("pool") == "sample" else "rank"}))
    x_SD = torch.cat([rank_tokens(rank)[0] for rank in ranks]).requires_grad_()
    grad_y_SD = torch.cat([rank_tokens(rank)[1] * (rank in expert_ranks) for rank in ranks])
    y_SD, routing = layer(x_SD, context(num_samples=SAMPLES * len(ranks)))
    y_SD.backward(grad_y_SD)
    result = {
        "y": y_SD.detach(),
        "mask": routing.mask_SE,
        "kth": routing.kth_probability_E,
        "grad/x": x_SD.grad,
    }
    return {
        name: tensor.numpy()
        for name, tensor in (
            result | {f"grad/{name}": p.grad for name, p in layer.expert_parameters()}
        ).items()
    }


@pytest.mark.parametrize("world_size, expert_parallel", [(2, 2), (4, 4), (4, 2)])
def test_expert_parallel_equals_one_process(world_size, expert_parallel):
    answers = run_on_ranks(train_and_infer_on_rank, world_size, expert_parallel=expert_parallel)
    rows = SAMPLES * TOKENS
    for i, settings in enumerate(ROUTERS):
        for rank in range(world_size):
            first = rank // expert_parallel * expert_parallel
            expert_ranks = list(range(first, first + expert_parallel))
            each = [[r] for r in expert_ranks]
            scope = {
                "sample": each,
                "rank": each,
                "expert_parallel": [expert_ranks],
                "data_parallel": [list(range(world_size))],
            }
            pools = scope[settings.get("pool", "rank")]
            alone = [train_alone(pool, expert_ranks, settings) for pool in pools]
            own = next(j for j, pool in enumerate(pools) if rank in pool)
            part = slice(pools[own].index(rank) * rows, (pools[own].index(rank) + 1) * rows)
            got = answers[rank][0][i]
            assert np.array_equal(got["mask"], alone[own]["mask"][part]), settings
            np.testing.assert_allclose(got["kth"], alone[own]["kth"], rtol=1e-6)
            for name in ("y", "grad/x"):
                np.testing.assert_allclose(
                    got[name], alone[own][name][part], **CLOSE, err_msg=f"{name} {settings}"
                )
            experts = [name for name in got if name.startswith("grad/experts.")]
            assert len(experts) == 4 * EXPERTS // expert_parallel
            for name in experts:
                # The gradient of the sum of the losses of the expert-parallel group; large tokens give large
                # sums.
                np.testing.assert_allclose(
                    got[name],
                    sum(answer[name] for answer in alone),
                    rtol=1e-4,
                    atol=1e-4,
                    err_msg=f"{name} {settings}",
                )


def test_uneven_and_empty_loads_at_inference_equal_one_process():
    layer = make_layer(threshold_bias_correction=False)
    set_uneven_thresholds(layer)
    for expert_parallel in (2, 4):
        for rank, (_, got) in enumerate(
            run_on_ranks(train_and_infer_on_rank, expert_parallel, expert_parallel=expert_parallel)
        ):
            for (rule, gamma), y_SD in got.items():
                with torch.no_grad():
                    np.testing.assert_allclose(
                        y_SD,
                        layer(rank_tokens(rank)[0], context(rule, gamma=gamma))[0],
                        **CLOSE,
                        err_msg=rule,
                    )
