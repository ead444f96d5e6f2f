"""Expert parallel against one process, in training and at inference."""

from dataclasses import replace
from typing import Any  # settings of any type are passed on to MoEConfig

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import RoutingContext, Rule
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, context, make_layer, tokens
from tests.ranks import run_on_ranks

# fp32 sums in another order.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
# Tokens of rank r are larger by r: routing is uneven between ranks.
POOLS = ("rank", "expert_parallel", "data_parallel")
ROUTERS: list[dict[str, Any]] = [{"pool": pool, "shared_experts": 1} for pool in POOLS] + [
    {"pool": "sample"},
    {"router": "expert_choice"},
    {"router": "token_choice", "top_k": 2},
    {"fused": "on"},
    {"fused": "on", "activation": "swiglu", "router": "token_choice", "top_k": 2},
    {"router": "dsmoe", "gate": "sigmoid", "top_k": 2, "shared_experts": 1},
    *({"router": "expert_race", "gate": "identity", "pool": pool} for pool in (*POOLS, "sample")),
    *(
        {"router": "expert_threshold", "gate": "sigmoid", "pool": pool, "threshold_warmup_steps": steps}
        for pool, steps in (*((pool, 1) for pool in (*POOLS, "sample")), ("rank", 0), ("data_parallel", 0))
    ),
    {"router": "promoe", "gate": "identity", "top_k": 2, "shared_experts": 1},
]


# With gamma 1 no rank has a row for any expert.
INFERENCE: list[tuple[Rule, float]] = [
    ("threshold", 0.5),
    ("interval", 0.5),
    ("interval", 1.0),
    ("threshold_count", 0.5),
    ("static", 0.5),
]


def rank_tokens(rank: int) -> tuple[Tensor, Tensor]:
    return tokens(seed=10 + rank) * (1 + 2 * rank), tokens(seed=20 + rank)


def with_dropped(around: RoutingContext) -> RoutingContext:
    """Every third sample has no caption."""
    return replace(around, dropped_B=torch.arange(around.num_samples) % 3 == 1)


def set_uneven_thresholds(layer: MoELayer) -> None:
    """No token for expert 0, all for expert 1, and the others in between."""
    layer.router.predictor.expert_threshold_E.copy_(torch.tensor([2.0, -1.0, 0.5, 0.45]))


def train_on_rank(parallel: ParallelContext, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    layer = make_layer(groups=parallel.megatron_groups, **settings)
    x_SD, grad_y_SD = rank_tokens(parallel.rank)
    x_SD.requires_grad_()
    y_SD, routing = layer(x_SD, with_dropped(context(step=1)))
    y_SD.backward(grad_y_SD)
    result: dict[str, Any] = {
        "y": y_SD.detach(),
        "mask": routing.mask_SE,
        "kth": routing.statistic_X,
        "grad/x": x_SD.grad,
        "grad/router": layer.router.weight.grad,
    }
    return {
        name: tensor.numpy()
        for name, tensor in (
            result | {f"grad/{name}": p.grad for name, p in layer.expert_parameters()}
        ).items()
    }


def infer_on_rank(parallel: ParallelContext, settings: dict[str, Any]) -> dict[tuple[str, float], np.ndarray]:
    layer = make_layer(groups=parallel.megatron_groups, threshold_bias_correction=False, **settings)
    set_uneven_thresholds(layer)
    with torch.no_grad():
        return {
            (rule, gamma): layer(rank_tokens(parallel.rank)[0], context(rule, gamma=gamma))[0].numpy()
            for rule, gamma in INFERENCE
        }


def train_and_infer_on_rank(
    parallel: ParallelContext,
) -> tuple[list[dict[str, np.ndarray]], dict[tuple[str, float], np.ndarray]]:
    return [train_on_rank(parallel, settings) for settings in ROUTERS], infer_on_rank(parallel, {})


def train_alone(ranks: list[int], expert_ranks: list[int], settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """One process with the tokens of `ranks` as its pool, by the plain loop; the loss counts the tokens of
    `expert_ranks`."""
    pool = "sample" if settings.get("pool") == "sample" else "rank"
    layer = make_layer(**(settings | {"pool": pool, "backend": "loop", "fused": "off"}))
    x_SD = torch.cat([rank_tokens(rank)[0] for rank in ranks]).requires_grad_()
    grad_y_SD = torch.cat([rank_tokens(rank)[1] * (rank in expert_ranks) for rank in ranks])
    y_SD, routing = layer(x_SD, with_dropped(context(num_samples=SAMPLES * len(ranks), step=1)))
    y_SD.backward(grad_y_SD)
    result: dict[str, Any] = {
        "y": y_SD.detach(),
        "mask": routing.mask_SE,
        "kth": routing.statistic_X,
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
            scope: dict[str, list[list[int]]] = {
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
            tensors = 2 if settings.get("activation") == "swiglu" else 4
            assert len(experts) == tensors * EXPERTS // expert_parallel
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
