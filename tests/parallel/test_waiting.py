"""Ranks wait for one with slow files longer than `parallel.timeout_s`, which is for ranks that compute."""

import time

import pytest
from megatron.core import parallel_state

from diffmoe_scale.parallel.context import ParallelContext, initialize
from diffmoe_scale.parallel.waiting import wait_for_ranks
from tests.ranks import run_on_ranks

TIMEOUT_S = 2


def wait_for_slow_rank(context: ParallelContext, slow: int) -> bool:
    parallel_state.destroy_model_parallel()  # made anew with less patience
    context = initialize(expert_parallel=1, timeout_s=TIMEOUT_S)
    begun = time.monotonic()
    if context.rank == slow:
        time.sleep(2 * TIMEOUT_S)
    wait_for_ranks(context.waiting_group)
    return time.monotonic() - begun >= TIMEOUT_S


@pytest.mark.parametrize("slow", [0, 1])
def test_others_wait_for_a_slow_rank_whichever_it_is(slow: int) -> None:
    assert run_on_ranks(wait_for_slow_rank, 2, slow) == [True, True]
