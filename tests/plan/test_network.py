"""Bytes and times of transfers against formulas."""

from dataclasses import replace
from typing import Any  # arguments of plan_transfers

import pytest

from diffmoe_scale.plan.network import Transfer, group_rates, plan_transfers
from diffmoe_scale.telemetry.hardware import gpu_of_user
from tests.plan.layouts import config_of

H100 = gpu_of_user("h100")
DENSE, EXPERTS = 1_000_000, 8_000_000


def transfers(*settings: str, ranks: int, **others: Any) -> dict[str, Transfer]:
    numbers: dict[str, Any] = {"tokens": 256, "moe_layers": 2, "forward_passes": 1, **others}
    config = config_of("model.precision=bf16", "run.global_batch=256", *settings)
    found = plan_transfers(config, ranks=ranks, gpu=H100, dense=DENSE, experts=EXPERTS, **numbers)
    return {transfer.what: transfer for transfer in found}


def test_gradients_are_all_reduced_in_fp32_and_weights_gathered() -> None:
    found = transfers("parallel.expert_parallel=4", "parallel.zero_stage=1", ranks=8)
    assert found["all-reduce of gradients"].bytes == 2 * 4 * DENSE * 7 / 8
    assert found["all-gather of weights"].bytes == 2 * DENSE * 7 / 8
    # Each expert is on 2 of the 8 ranks; a rank holds a quarter of them.
    assert found["all-reduce of expert gradients"].bytes == 2 * 4 * EXPERTS / 4 / 2
    assert found["all-gather of expert weights"].bytes == 2 * EXPERTS / 4 / 2
    half = transfers(
        "parallel.expert_parallel=4", "parallel.zero_stage=1", "parallel.gradient_format=bf16", ranks=8
    )
    for name in ("all-reduce of gradients", "all-reduce of expert gradients"):
        assert half[name].bytes == found[name].bytes / 2


def test_zero_2_reduces_in_every_micro_batch() -> None:
    one, two = (transfers(f"parallel.zero_stage={stage}", ranks=8) for stage in (1, 2))
    for name in ("all-reduce of gradients", "all-reduce of expert gradients"):
        assert two[name].bytes == 8 * one[name].bytes  # 256 samples: 8 micro-batches of 4 on each of 8 ranks


def test_rows_go_to_experts_and_back_forward_and_backward() -> None:
    found = transfers("parallel.expert_parallel=4", "moe.capacity=2", "run.global_batch=32", ranks=8)
    rows = 2 * 256 * 2 * 2 * 2  # capacity, tokens, layers, there and back, forward and backward
    assert found["all-to-all of tokens"].bytes == rows * 64 * 2 * 3 / 4
    again = transfers(
        "parallel.expert_parallel=4", "moe.capacity=2", "run.global_batch=32", ranks=8, forward_passes=2
    )
    assert again["all-to-all of tokens"].bytes == found["all-to-all of tokens"].bytes * 3 / 2


def test_one_rank_sends_nothing() -> None:
    assert transfers(ranks=1) == {}


@pytest.mark.parametrize(
    ("expert_parallel", "ranks", "rate"),
    # Two replicas in one machine; one rank, thus one network card, in each of two machines; two ranks.
    [(4, 8, 0.82 * 450e9), (8, 16, 0.92 * 50e9), (4, 16, 2 * 0.92 * 50e9)],
)
def test_a_group_has_a_network_card_for_each_of_its_ranks_in_a_machine(
    expert_parallel: int, ranks: int, rate: float
) -> None:
    settings = [f"parallel.expert_parallel={expert_parallel}", "moe.num_experts=8"]
    found = transfers(*settings, ranks=ranks)["all-reduce of expert gradients"]
    assert found.bytes / found.seconds == pytest.approx(rate)


def test_experts_on_other_machines_cost_the_network() -> None:
    settings = ["moe.num_experts=16", "run.global_batch=64"]
    inside, outside = (
        transfers(*settings, f"parallel.expert_parallel={size}", ranks=16)["all-to-all of tokens"]
        for size in (8, 16)
    )
    assert outside.bytes > inside.bytes and outside.seconds > 4 * inside.seconds


def test_rates_of_a_group_over_two_machines() -> None:
    """Of 16 ranks 7 of a rank's rows stay in its machine, 8 go over its own network card, 1 stays."""
    fast = replace(H100, link=450e9, nic=1e12)
    assert group_rates(fast, 16)[0] == pytest.approx(0.82 * 450e9)  # never more than the link
    slow = replace(H100, link=450e9, nic=50e9)
    assert group_rates(slow, 16)[1] == pytest.approx((7 + 8) / 16 / (8 / 16 / (0.92 * 50e9)))
    assert group_rates(slow, 8)[1] == pytest.approx(0.82 * 450e9)
