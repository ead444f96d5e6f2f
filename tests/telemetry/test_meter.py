import json
import math

import pytest
import torch

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.meter import Means, Meter, MeterState
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")


def test_means_weigh_every_value_and_start_anew() -> None:
    meter = Meter(CPU)
    meter.add("loss", torch.tensor(1.0, requires_grad=True), 3)
    meter.add("loss", 5.0)
    meter.add("by_time", torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    meter.add("by_time", torch.tensor([4.0, 0.0, 0.0]), torch.tensor([2.0, 0.0, 0.0]))
    means = meter.means()
    assert means.scalars["loss"] == 2.0
    assert means.vectors["by_time"] == pytest.approx([3.0, 2.0, math.nan], nan_ok=True)
    assert meter.means() == Means()


def test_a_scalar_without_weight_has_no_mean() -> None:
    meter = Meter(CPU)
    meter.add("norm", 1.0, 0.0)
    meter.add("loss", 1.0)
    assert meter.means() == Means(scalars={"loss": 1.0})


def means_on_rank(parallel: ParallelContext) -> Means:
    meter = Meter(parallel.device)
    for _ in range(2):
        meter.add("loss", float(parallel.rank), weight=1 + parallel.rank)
        meter.add("load", torch.tensor([1.0, 2.0]) * (1 + parallel.rank))
    return meter.means(parallel.dp_group)


def test_means_are_over_all_ranks() -> None:
    # Rank 1 counts twice: (0 + 2 * 1) / 3. What approx gives compares as a number.
    expected = Means({"loss": pytest.approx(2 / 3)}, {"load": [1.5, 3.0]})  # type: ignore[dict-item]
    assert run_on_ranks(means_on_rank, 2) == [expected] * 2


def test_state_goes_on_to_the_bit_and_through_json() -> None:
    values = [torch.tensor([0.1, 0.7]), torch.tensor([1e-3, 3e8]), torch.tensor([2 / 3, math.inf])]
    whole, first, second = Meter(CPU), Meter(CPU), Meter(CPU)
    for meter, parts in ((whole, values), (first, values[:2])):
        for number, value in enumerate(parts):
            meter.add("vector", value, torch.tensor([0.3, 1.0]))
            meter.add("number", 0.1 * number)
            meter.add("scalar", value[0])
    second.restore([json.loads(json.dumps(first.state()))], rank=0, size=1)
    second.add("vector", values[2], torch.tensor([0.3, 1.0]))
    second.add("number", 0.1 * 2)
    second.add("scalar", values[2][0])
    assert second.means() == whole.means()


def test_states_of_several_ranks_are_shared_by_another_number_of_ranks() -> None:
    def state(value: float) -> MeterState:
        meter = Meter(CPU)
        meter.add("loss", torch.tensor(value), 2)
        meter.add("load", torch.tensor([value, math.nan]), torch.tensor([1.0, 0.0]))
        return meter.state()

    found = {}
    for rank in range(3):
        meter = Meter(CPU)
        meter.restore([state(1.0), state(2.0)], rank=rank, size=3)
        found[rank] = meter.means()
    assert [means.scalars for means in found.values()] == [{"loss": 1.0}, {"loss": 2.0}, {}]
    # The same names and shapes on all ranks, for their all-reduce.
    assert all(list(means.vectors) == ["load"] for means in found.values())
    both = Meter(CPU)
    both.restore([state(1.0), state(2.0), state(6.0)], rank=0, size=2)
    assert both.means().scalars == {"loss": 3.5}


def test_a_rank_without_a_state_begins_with_nothing_that_counts() -> None:
    meter = Meter(CPU)
    meter.add("loss", math.inf)
    meter.add("load", torch.tensor([math.nan]))
    late = Meter(CPU)
    late.restore([meter.state()], rank=1, size=2)
    late.add("loss", 3.0)
    late.add("load", torch.tensor([4.0]))
    assert late.means() == Means({"loss": 3.0}, {"load": [4.0]})
