"""Adaptive steps: as exact as asked for, each sample for itself, and as many calls as the slowest needs."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.sampling import dopri5 as module
from diffmoe_scale.sampling.dopri5 import dopri5
from tests.sampling.gaussian import Gaussian, noise, rms


def draw(
    network: Callable[[Tensor, Tensor], Tensor],
    x_1: Tensor,
    *,
    prediction: Literal["velocity", "sample"] = "velocity",
    tolerance: float = 1e-3,
    is_any: Callable[[bool], bool] = bool,
) -> Tensor:
    objective = build_objective(DiffusionConfig(prediction=prediction))
    times = torch.tensor([1.0, objective.end_time], dtype=torch.float64)
    return dopri5(network, objective, x_1, times, tolerance=tolerance, is_any=is_any)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_errors_follow_the_tolerance(
    prediction: Literal["velocity", "sample"],
) -> None:
    x_1 = noise().double()
    calls, errors = [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        network = Gaussian(DiffusionConfig(prediction=prediction))
        x_0 = draw(network, x_1, prediction=prediction, tolerance=tolerance)
        errors.append(rms(x_0 - network.exact(x_1, end=network.objective.end_time)))
        assert errors[-1] < 10 * tolerance
        calls.append(len(network.times))
    assert calls[0] <= 20 and calls == sorted(calls)


def test_equal_steps_converge_with_order_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 1.0)
    monkeypatch.setattr(module, "LONGEST", 1.0)
    x_1, errors = noise().double(), []
    for steps in (16, 32, 64):
        monkeypatch.setattr(module, "FIRST_STEP", 1 / steps)
        network = Gaussian(DiffusionConfig())
        errors.append(rms(draw(network, x_1, tolerance=1e3) - network.exact(x_1, end=0.0)))
        assert len(network.times) == 2 + 6 * steps
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(4.5 < slope < 5.5 for slope in slopes), (errors, slopes)


class TwoSpeeds:
    """Sample rows that begin above 1 turn fast, others hardly move."""

    def __init__(self) -> None:
        self.times: list[Tensor] = []

    def __call__(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        self.times.append(t_B.clone())
        is_fast = (x_t[:, :1] > 1).to(x_t)
        t = t_B[:, None, None, None]
        return torch.cat([torch.zeros_like(x_t[:, :1]), is_fast * (40 * t).cos() + x_t[:, 1:] * 0.1], dim=1)


def start(*speeds: float) -> Tensor:
    x_1 = torch.cat([torch.ones(1, 2, 4, 4)] * len(speeds))
    x_1[:, 0] = torch.tensor(speeds)[:, None, None]
    return x_1.double()


def test_a_sample_does_not_depend_on_its_neighbours_and_steps_for_itself() -> None:
    network = TwoSpeeds()
    together = draw(network, start(0.0, 2.0, 0.0))
    alone = [draw(TwoSpeeds(), start(speed)) for speed in (0.0, 2.0, 0.0)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw(TwoSpeeds(), start(0.0, 0.0))[0], together[0], rtol=1e-12, atol=1e-12)
    times_TB = torch.stack(network.times)
    assert torch.equal(times_TB[:, 0], times_TB[:, 2]) and not torch.equal(times_TB[:, 0], times_TB[:, 1])
    arrived = int((times_TB[:, 0] == 0).nonzero()[0])
    assert arrived < len(times_TB) / 2, "the slow one has few steps and then waits"


def test_ranks_that_are_done_call_the_network_until_all_are() -> None:
    asked: list[bool] = []
    network, plain = Gaussian(DiffusionConfig()), Gaussian(DiffusionConfig())
    expected = draw(plain, noise())

    def is_any(truth: bool) -> bool:
        asked.append(truth)
        return len(asked) <= 20

    x_0 = draw(network, noise(), is_any=is_any)
    assert len(network.times) == 1 + 6 * 20 + 1 > len(plain.times)
    assert True in asked and asked[-1] is False
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-6)


def test_a_sample_that_is_not_finite_ends_and_spoils_no_other() -> None:
    network = Gaussian(DiffusionConfig())

    def spoilt(x_t: Tensor, t_B: Tensor) -> Tensor:
        value = network(x_t, t_B)
        value[1] = value[1] / (t_B[1] > 0.5)
        return value

    x_0 = draw(spoilt, noise(3))
    assert not x_0[1].isfinite().all()
    torch.testing.assert_close(x_0[::2], draw(Gaussian(DiffusionConfig()), noise(3))[::2], rtol=0, atol=1e-6)


def test_steps_without_end_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STEPS", 3)
    with pytest.raises(RunError, match=r"took 3 steps and is not at the end; raise sampling\.tolerance"):
        draw(TwoSpeeds(), start(2.0))
