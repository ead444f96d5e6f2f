import math

import pytest
import torch

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.meter import Means, Meter
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
