"""Times of the network's calls."""

import math
import random
from typing import Literal

import pytest
import torch

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.sampling.schedule import sampling_times, shift_of, whole_steps


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_times_are_equally_spaced_to_one_step_before_the_data(steps: int) -> None:
    times = sampling_times(steps, end=0.05)
    expected = [1 - step / steps for step in range(steps)]
    torch.testing.assert_close(times, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [21, 50, 1000])
def test_more_steps_do_not_go_below_the_end(steps: int) -> None:
    times = sampling_times(steps, end=0.05)
    assert len(times) == steps and times[0] == 1 and abs(float(times[-1]) - 0.05) < 1e-7
    gaps = times[:-1] - times[1:]
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.95 / (steps - 1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 20, 200])
@pytest.mark.parametrize("shift", [0.3, 1.7, 4.0])
def test_shifted_times_begin_at_noise_and_stay_above_the_end(steps: int, shift: float) -> None:
    times = sampling_times(steps, end=0.05, shift=shift).double()
    assert len(times) == steps and times[0] == 1 and times[-1] >= torch.tensor(0.05)
    back = times / (shift - (shift - 1) * times)  # the inverse of the shift
    gaps = back[:-1] - back[1:]
    torch.testing.assert_close(gaps, gaps.mean().expand(len(gaps)), rtol=0, atol=1e-6)
    if times[-1] > 0.0501:
        torch.testing.assert_close(back[-1], torch.tensor(1 / steps).double(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_times_fall_from_noise_to_the_end_whatever_is_asked_for() -> None:
    choose = random.Random(0)
    for _ in range(300):
        steps = choose.choice([1, 2, 3, 7, 50, 999, 10_000])
        shift = math.exp(choose.uniform(-4.6, 4.6))
        end = choose.choice([0.0, 1e-3, 0.05, choose.uniform(0, 0.9)])
        times = sampling_times(steps, end=end, shift=shift)
        case = steps, end, shift
        assert times.dtype == torch.float32 and len(times) == steps and times[0] == 1, case
        assert (times[1:] < times[:-1]).all() and times[-1] >= torch.tensor(end) and times[-1] > 0, case


@pytest.mark.parametrize(
    ("shift", "factor", "tokens", "expected"),
    [
        ("none", 1.0, 4096, 1.0),
        ("constant", 3.0, 64, 3.0),
        ("sd3", 1.0, 256, 1.0),
        ("sd3", 1.0, 4096, 4.0),
        ("sd3", 0.75, 4096, 3.0),
        ("flux", 1.0, 256, math.exp(0.5)),
        ("flux", 1.0, 4096, math.exp(1.15)),
    ],
)
def test_the_shift_grows_with_the_tokens_of_a_picture(
    shift: Literal["none", "constant", "sd3", "flux"], factor: float, tokens: int, expected: float
) -> None:
    sampling = SamplingConfig(shift=shift, shift_factor=factor)
    assert shift_of(sampling, num_tokens=tokens) == pytest.approx(expected)


def test_times_of_ddpm_are_those_of_dit() -> None:
    """Its space_timesteps(1000, "250") and "50": 0 and 999 among them, in equal steps rounded."""
    for steps in (50, 250, 1000):
        expected = [round(number * 999 / (steps - 1)) for number in range(steps)]
        found = [round(time * 1000) - 1 for time in whole_steps(steps, of=1000).tolist()]
        assert found == expected[::-1] and len(set(found)) == steps
    assert whole_steps(1, of=1000).tolist() == [1.0]
