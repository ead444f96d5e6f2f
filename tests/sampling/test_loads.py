"""Means of the experts' load by the time of the calls."""

import torch

from diffmoe_scale.sampling.loads import LoadByTime


def test_loads_are_means_over_calls_of_equal_times_by_their_pictures() -> None:
    first, second = LoadByTime(), LoadByTime()
    first.add(1.0, torch.tensor([[1.0, 3.0]]), weight=1)
    first.add(0.5, torch.tensor([[2.0, 2.0]]), weight=1)
    second.add(1.0, torch.tensor([[5.0, 0.0]]), weight=3)
    first.merge(second)
    assert first.times == [1.0, 0.5]
    assert first.load_TLE.tolist() == [[[4.0, 0.75]], [[2.0, 2.0]]]
    assert first.capacity == (4.0 + 0.75 + 2 + 2) / 4


def test_without_experts_there_is_no_load_and_the_capacity_is_one() -> None:
    assert (
        LoadByTime().load_TLE.shape == (0, 0, 0) and LoadByTime().capacity == 1 and LoadByTime().times == []
    )
