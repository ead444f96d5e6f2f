"""Any layout of ranks, and any pool, against one process on the concatenated batch: drawn cases, uneven loads
and ties included.

Every rank draws the same cases and compares itself with the one process; the ranks then agree on the outcome,
so that all of them go on, or stop, together.
"""

from dataclasses import dataclass
from typing import Any  # settings of any type are passed on to MoEConfig

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import RoutingContext, Rule, Selection
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import WIDTH, make_layer
from tests.ranks import run_on_ranks

WORLD = 4
EXAMPLES = 6
# fp32 sums in another order, of values up to some tens.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}


@dataclass(frozen=True)
class Case:
    """Settings of a layer, and what each rank brings."""

    settings: dict[str, Any]
    num_samples: int
    num_tokens: int
    scales: tuple[int, ...]
    rule: Rule
    seed: int

    def tokens(self, ranks: list[int]) -> tuple[Tensor, Tensor]:
        """Tokens and output gradients of ranks. Small integers: scores are exact, many are equal, also across
        ranks."""
        parts = []
        for rank in ranks:
            generator = torch.Generator().manual_seed(100 * self.seed + rank)
            rows = self.num_samples * self.num_tokens
            x_SD = torch.randint(-1, 2, (rows, WIDTH), generator=generator).float()
            # A third of the tokens is one and the same: ties within a rank and between ranks.
            x_SD[torch.randperm(rows, generator=generator)[: rows // 3]] = 1.0
            parts.append((x_SD * self.scales[rank], torch.randn(rows, WIDTH, generator=generator)))
        x_parts, grad_parts = zip(*parts, strict=True)
        return torch.cat(x_parts), torch.cat(grad_parts)

    def layer(self, **others: Any) -> MoELayer:
        layer = make_layer(seed=self.seed, threshold_bias_correction=False, **(self.settings | others))
        with torch.no_grad():
            for weight in (
                layer.router.weight,
                layer.router.predictor.hidden.weight,
                layer.router.predictor.output.weight,
            ):
                weight.copy_((8 * weight).round() / 8)  # binary fractions, for exact sums
            # None, all and some tokens at inference.
            layer.router.predictor.expert_threshold_E.copy_(
                torch.tensor([2.0, -1.0, 0.52, 0.47]).repeat(len(layer.router.weight))[
                    : len(layer.router.weight)
                ]
            )
        return layer


TRAINING = [(pool, ("train",)) for pool in ("sample", "rank", "expert_parallel", "data_parallel")]
INFERENCE = [
    (pool, ("threshold", "threshold_count", "interval", "static")) for pool in ("sample", "data_parallel")
]


@st.composite
def cases(draw: st.DrawFn, pool: str, rules: tuple[str, ...]) -> Case:
    num_experts = draw(st.sampled_from([4, 8]))
    router = {
        "num_experts": num_experts,
        "pool": pool,
        "capacity": draw(st.sampled_from([1.0, 1.7, float(num_experts)])),
        "gate": draw(st.sampled_from(["softmax", "sigmoid", "identity"])),
        "backend": draw(st.sampled_from(["loop", "grouped"])),
        "activation": draw(st.sampled_from(["gelu", "swiglu"])),
    }
    return Case(
        router,
        num_samples=draw(st.integers(1, 3)),
        num_tokens=draw(st.integers(num_experts, 13)),
        scales=tuple(draw(st.lists(st.integers(0, 3), min_size=WORLD, max_size=WORLD))),
        rule=draw(st.sampled_from(rules)),
        seed=draw(st.integers(0, 9)),
    )


def run_layer(
    layer: MoELayer, x_SD: Tensor, grad_y_SD: Tensor, *, num_samples: int, rule: Rule
) -> dict[str, Tensor]:
    x_SD = x_SD.clone().requires_grad_()
    y_SD, routing = layer(
        x_SD, RoutingContext(num_samples, x_SD, torch.zeros(num_samples, WIDTH), Selection(rule, 0.5))
    )
    y_SD.backward(grad_y_SD)
    found = {
        "mask": routing.mask_SE,
        "y": y_SD.detach(),
        "grad/x": x_SD.grad,
        "kth": routing.statistic_X,
    }
    return found | {
        f"grad/{name}": torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in layer.expert_parameters()
    }


def compare(case: Case, parallel: ParallelContext) -> None:
    expert_parallel, rank, rows = parallel.expert_parallel, parallel.rank, case.num_samples * case.num_tokens
    first = rank // expert_parallel * expert_parallel
    expert_ranks, each = list(range(first, first + expert_parallel)), [[r] for r in range(WORLD)]
    by_scope = {
        "sample": each,
        "rank": each,
        "expert_parallel": [expert_ranks],
        "data_parallel": [list(range(WORLD))],
    }
    # At inference no rank looks at another's tokens.
    pools = by_scope[str(case.settings["pool"])] if case.rule == "train" else each
    pools = [pool for pool in pools if set(pool) & set(expert_ranks)]
    got = run_layer(
        case.layer(groups=parallel.megatron_groups),
        *case.tokens([rank]),
        num_samples=case.num_samples,
        rule=case.rule,
    )
    alone = []
    for pool in pools:
        x_SD, grad_y_SD = case.tokens(pool)
        # The loss counts the tokens of this expert-parallel group.
        grad_y_SD = grad_y_SD * torch.tensor([float(r in expert_ranks) for r in pool]).repeat_interleave(
            rows
        ).unsqueeze(1)
        scope = "sample" if case.settings["pool"] == "sample" else "rank"
        alone.append(
            run_layer(
                case.layer(pool=scope),
                x_SD,
                grad_y_SD,
                num_samples=case.num_samples * len(pool),
                rule=case.rule,
            )
        )
    own = next(i for i, pool in enumerate(pools) if rank in pool)
    place = pools[own].index(rank)
    part = slice(place * rows, (place + 1) * rows)
    assert torch.equal(got["mask"], alone[own]["mask"][part])
    np.testing.assert_allclose(got["kth"], alone[own]["kth"], rtol=1e-6)
    for name in ("y", "grad/x"):
        np.testing.assert_allclose(got[name], alone[own][name][part], **CLOSE, err_msg=name)
    for name in (name for name in got if name.startswith("grad/experts.")):
        np.testing.assert_allclose(
            got[name], sum(answer[name] for answer in alone), rtol=1e-4, atol=1e-4, err_msg=name
        )


def compare_drawn_cases(parallel: ParallelContext) -> int:
    """How many cases were compared."""
    compared = []

    def agree(case: Case) -> None:
        problem = ""
        try:
            compare(case, parallel)
        except AssertionError as error:
            problem = str(error) or "the selection differs"
        outcome = torch.tensor(float(bool(problem)))
        dist.all_reduce(outcome)
        compared.append(case)
        assert not outcome, problem or "another rank differs"

    # Nothing that depends on a rank's clock or disk: the ranks must draw alike.
    alike = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    for pool, rules in TRAINING + INFERENCE:
        alike(given(case=cases(pool, rules))(agree))()
    return len(compared)


@pytest.mark.parametrize("expert_parallel", [1, 2, 4])
def test_every_layout_and_pool_selects_and_computes_as_one_process(expert_parallel: int) -> None:
    compared = run_on_ranks(compare_drawn_cases, WORLD, expert_parallel=expert_parallel)
    assert min(compared) >= EXAMPLES * len(TRAINING + INFERENCE)
