import time
from pathlib import Path

import pytest
import torch

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.phases import Phases, PhaseTime
from tests.ranks import run_on_ranks


def phases_of_rank(context: ParallelContext) -> list[dict[str, PhaseTime]]:
    """Rank 1 sleeps three times as long, and only before the first `take`."""
    phases = Phases(context.device, ("forward", "backward"))
    for _ in range(2):
        with phases("forward"):
            time.sleep(0.02 + 0.04 * context.rank)
    return [phases.take(context.dp_group), phases.take(context.dp_group)]


def test_phases_are_means_over_ranks_and_start_anew() -> None:
    first, second = run_on_ranks(phases_of_rank, 2)[0]
    assert first["forward"].mean_s == pytest.approx(0.08, abs=0.02)
    assert first["forward"].slowest_s == pytest.approx(0.12, abs=0.03)
    assert first["forward"].median_s == pytest.approx(0.08, abs=0.02)
    assert first["forward"].slowest_rank == 1
    assert first["backward"].mean_s == second["forward"].mean_s == second["forward"].slowest_s == 0


def test_phases_have_their_names_in_a_trace(tmp_path: Path) -> None:
    phases = Phases(torch.device("cpu"), ("forward",))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
        phases("forward"),
    ):
        torch.ones(2).sum()
    assert "forward" in [event.name for event in profiler.events()]


def resumed(context: ParallelContext) -> list[float]:
    phases = Phases(context.device, ("forward", "backward"))
    phases.restore([{"forward": 1.0}, {"forward": 2.0, "of an older version": 9.0}], rank=context.rank)
    with phases("backward"):
        time.sleep(0.01)
    state = phases.state()
    taken = phases.take(context.dp_group)
    assert taken["backward"].mean_s >= 0.01 and state["backward"] >= 0.01
    return [state["forward"], taken["forward"].mean_s, phases.state()["forward"]]


def test_phases_count_on_where_a_checkpoint_left_them() -> None:
    assert run_on_ranks(resumed, 2) == [[1.0, 1.5, 0.0], [2.0, 1.5, 0.0]]
    assert run_on_ranks(resumed, 3)[2] == [1.5, 1.5, 0.0]  # another number of ranks: the mean


def median_of_three(context: ParallelContext) -> PhaseTime:
    phases = Phases(context.device, ("forward",))
    phases.restore([{"forward": seconds} for seconds in (1.0, 2.0, 9.0)], rank=context.rank)
    return phases.take(context.dp_group)["forward"]


def test_the_median_rank_is_not_moved_by_a_slow_one() -> None:
    expected = PhaseTime(mean_s=4.0, median_s=2.0, slowest_s=9.0, slowest_rank=2)
    assert run_on_ranks(median_of_three, 3) == [expected] * 3
