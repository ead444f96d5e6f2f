from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from diffmoe_scale.nn.all_to_all import all_to_all
from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks


def counted_exchange(context: ParallelContext) -> tuple[list[float], list[float], int]:
    """Rank 0 sends 1 row and keeps 2, rank 1 sends 3 and keeps 0. What came, the gradient, times on the
    clock."""
    entered = 0

    @contextmanager
    def clock() -> Iterator[None]:
        nonlocal entered
        entered += 1
        yield

    sent = [[2, 1], [3, 0]][context.rank]
    received = [[2, 3], [1, 0]][context.rank]
    rows = torch.arange(3.0).add(10 * context.rank).requires_grad_()
    answer = all_to_all(rows, context.ep_group, received, sent, clock=clock)
    (answer * (1 + context.rank)).sum().backward()
    assert rows.grad is not None
    return answer.tolist(), rows.grad.tolist(), entered


def test_rows_and_gradients_go_there_and_back_on_the_clock() -> None:
    first, second = run_on_ranks(counted_exchange, 2, expert_parallel=2)
    assert first == ([0, 1, 10, 11, 12], [1, 1, 2], 2)
    assert second == ([2], [1, 1, 1], 2)


def test_a_rank_without_peers_exchanges_nothing() -> None:
    def never() -> None:
        pytest.fail("the clock of an exchange ran")

    rows = torch.ones(2)
    assert all_to_all(rows, None, None, None, clock=never) is rows  # type: ignore[arg-type]  # not called
