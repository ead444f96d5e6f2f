"""Intervals and tests against closed forms, plain loops and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffmoe_scale.evaluation.harness.statistics import (
    NORMAL_95,
    compare,
    correct_for_number,
    estimate,
    estimate_mean,
)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 10), (50, 100), (1, 2)])
def test_interval_of_shares_is_that_of_wilson(right: int, count: int) -> None:
    found = estimate_mean([1.0] * right + [0.0] * (count - right))
    wilson = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (found.value, found.count) == (right / count, count)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_values_that_differ_less_than_shares_have_a_shorter_interval() -> None:
    values = [0.4, 0.5, 0.6] * 20
    found = estimate_mean(values)
    standard = NORMAL_95 * float(np.std(values)) / math.sqrt(60)
    assert found.high - found.low == pytest.approx(2 * standard, rel=0.01)
    alike = estimate_mean([0.25] * 4)
    wilson = stats.binomtest(1, 4).proportion_ci(0.95, method="wilson")
    assert (alike.low, alike.high) == pytest.approx((wilson.low, wilson.high))


@pytest.mark.parametrize(("value", "count"), [(0.1, 3), (0.7, 3), (0.7, 6), (0.9, 7), (1 / 3, 5)])
def test_values_that_are_all_alike_have_an_interval_whatever_rounding_says(value: float, count: int) -> None:
    """By Wilson's formula: three times 0.1 have a variance of 2e-34 in floating point, not 0."""
    found = estimate_mean([value] * count)
    z2 = NORMAL_95**2
    centre = (value + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * value * (1 - value) / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truths = (0.9, 0.3)
    inside = 0
    for _ in range(1000):
        values = [*(generator.random(40) < truths[0]), *(generator.random(20) < truths[1])]
        groups = ["a"] * 40 + ["b"] * 20
        found = estimate([float(value) for value in values], groups, means_of_groups=True)
        inside += found.low <= sum(truths) / 2 <= found.high
    assert 0.93 <= inside / 1000 <= 0.98


def test_difference_is_that_of_the_scores_and_its_p_counts_all_signs() -> None:
    """By a plain loop over all signs."""
    before, after = [0.0, 0.5, 1.0, 0.25, 0.0, 1.0], [1.0, 0.5, 1.0, 0.75, 1.0, 0.75]
    found = compare(before, after, [""] * 6, means_of_groups=False)
    differences = np.subtract(after, before)
    assert found.value == pytest.approx(differences.mean())
    half = NORMAL_95 * differences.std(ddof=1) / math.sqrt(6)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    nonzero = differences[differences != 0]
    sums = [abs(np.dot(signs, nonzero)) for signs in itertools.product((-1, 1), repeat=len(nonzero))]
    assert found.p == pytest.approx(np.mean([one >= nonzero.sum() - 1e-12 for one in sums]))


def test_difference_of_means_of_groups_weighs_groups_alike() -> None:
    before, after = [0.0] * 8, [1.0] * 2 + [0.0] * 6
    found = compare(before, after, ["a"] * 2 + ["b"] * 6, means_of_groups=True)
    assert (
        found.value == pytest.approx(0.5) and compare(before, before, [""] * 8, means_of_groups=False).p == 1
    )


def test_groups_of_one_prompt_have_the_spread_of_all() -> None:
    """With a prompt in each group the mean over groups is that over prompts, and so is its interval."""
    before, after, groups = [0.0] * 3, [0.2, 0.4, 0.6], ["a", "b", "c"]
    apart = compare(before, after, groups, means_of_groups=True)
    together = compare(before, after, groups, means_of_groups=False)
    assert (apart.low, apart.high) == pytest.approx((together.low, together.high))
    assert apart.high - apart.low > 0.3


def test_differences_that_are_all_alike_have_an_interval_of_one_point() -> None:
    """0.6 - 0.5 and 0.1 - 0 differ in the last digit; the report says of such that nothing is known."""
    found = compare([0.5, 0.5, 0.0], [0.6, 0.6, 0.1], [""] * 3, means_of_groups=False)
    assert found.low == found.high == pytest.approx(0.1)


def test_chance_alone_is_rarely_called_a_difference() -> None:
    generator = np.random.default_rng(1)
    ps = []
    for _ in range(60):
        before, after = generator.random((2, 30)) < 0.5
        ps.append(compare(before.tolist(), after.tolist(), [""] * 30, means_of_groups=False).p)
    assert np.mean(np.array(ps) < 0.05) <= 0.12
    moved = compare([0.0] * 30, [1.0] * 20 + [0.0] * 10, [""] * 30, means_of_groups=False)
    assert moved.p < 0.001


def test_correction_is_that_of_holm() -> None:
    found = correct_for_number({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
