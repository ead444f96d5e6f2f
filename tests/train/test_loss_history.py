import json
import random
from statistics import mean, pstdev

import pytest

from diffmoe_scale.train.loss_history import LossHistory

BINS = 3
# The loss of time bin 2 is a hundred times that of bin 0.
LEVELS = (0.1, 1.0, 10.0)


def noisy_step(random_numbers: random.Random, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """Sums and counts of 64 samples whose losses scatter by a tenth around their bin's level."""
    sums, counts = [0.0] * BINS, [0.0] * BINS
    for _ in range(64):
        time_bin = random_numbers.randrange(BINS)
        sums[time_bin] += LEVELS[time_bin] * factor * random_numbers.gauss(1, 0.1)
        counts[time_bin] += 1
    return sums, counts


def take(history: LossHistory, sums: list[float], counts: list[float]) -> tuple[float, float | None]:
    value = history.value(sums, counts)
    z_score = history.z_score(value)
    history.add(value, sums, counts, is_usual=z_score is None or z_score < 10)
    return value, z_score


def test_values_scatter_with_the_noise_and_not_with_the_times_that_were_drawn() -> None:
    history, random_numbers = LossHistory(num_bins=BINS, window=50), random.Random(0)
    values = [take(history, *noisy_step(random_numbers))[0] for _ in range(400)][100:]
    # 64 samples of 10 % noise: 1.25 %. The plain means scatter by a tenth, from the share of bin 2.
    assert mean(values) == pytest.approx(1, abs=0.01) and pstdev(values) < 0.02


def test_nothing_is_judged_before_the_window_is_full() -> None:
    history, random_numbers = LossHistory(num_bins=BINS, window=5), random.Random(0)
    scores = [take(history, *noisy_step(random_numbers))[1] for _ in range(7)]
    assert scores[:5] == [None] * 5 and None not in scores[5:]


def test_score_is_the_distance_from_the_median_in_robust_deviations() -> None:
    history = LossHistory(num_bins=1, window=5)
    for value in (1.0, 1.2, 0.8, 1.1, 50.0):
        history.add(value, [0.0], [0.0], is_usual=False)
    # Median 1.1; distances 0.1, 0.1, 0.3, 0, 48.9 have the median 0.1. One value of five does not move them
    # far.
    assert history.z_score(1.6) == pytest.approx(0.5 / (1.4826 * 0.1))


def test_losses_that_do_not_move_are_compared_with_a_hundredth_of_themselves() -> None:
    history = LossHistory(num_bins=1, window=3)
    for _ in range(3):
        history.add(2.0, [0.0], [0.0], is_usual=False)
    assert history.z_score(2.2) == pytest.approx(10.0)


def test_spike_stands_out_and_leaves_the_usual_losses_as_they_were() -> None:
    history, random_numbers = LossHistory(num_bins=BINS, window=50), random.Random(0)
    scores = [take(history, *noisy_step(random_numbers))[1] for _ in range(100)]
    assert max(score for score in scores[50:] if score is not None) < 5
    usual = history.ratio(1.0, 1)
    _, z_score = take(history, *noisy_step(random_numbers, factor=3))
    assert (
        z_score is not None and z_score > 50 and history.ratio(1.0, 1) == usual == pytest.approx(1, abs=0.05)
    )


def test_loss_that_stays_high_becomes_usual() -> None:
    history, random_numbers = LossHistory(num_bins=BINS, window=20), random.Random(0)
    for _ in range(40):
        take(history, *noisy_step(random_numbers))
    scores = [take(history, *noisy_step(random_numbers, factor=3))[1] or 0 for _ in range(30)]
    assert min(scores[:9]) > 10 and max(scores[-5:]) < 10


def test_history_goes_on_from_its_state_through_json() -> None:
    history, other = LossHistory(num_bins=BINS, window=10), LossHistory(num_bins=BINS, window=10)
    random_numbers = random.Random(0)
    for _ in range(15):
        take(history, *noisy_step(random_numbers))
    other.restore(json.loads(json.dumps(history.state())))
    steps = [noisy_step(random_numbers) for _ in range(15)]
    assert [take(history, *step) for step in steps] == [take(other, *step) for step in steps]
