"""Times of the network's calls."""

import pytest
import torch

from diffmoe_scale.sampling.schedule import sampling_times


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
