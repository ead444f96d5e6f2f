"""What seeds show: against textbook formulas and simulated studies."""

import math

import numpy as np
import pytest

from diffmoe_scale.study.statistics import claims, compare_variants, estimate_seeds, find_noise

GRID = {"a": {0: 1.0, 1: 2.0, 2: 3.5}, "b": {0: 1.5, 1: 2.7, 2: 3.6}, "c": {0: 0.2, 1: 1.9, 2: 2.1}}


def test_the_interval_of_a_mean_is_students() -> None:
    found = estimate_seeds([1.0, 2.0, 6.0])
    # mean 3, standard deviation sqrt(7), t(0.975, 2) = 4.302653
    half = 4.302653 * math.sqrt(7 / 3)
    assert found.value == 3.0 and found.count == 3
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)


def test_one_seed_has_no_interval_and_nothing_is_claimed() -> None:
    assert math.isnan(estimate_seeds([1.0]).low)
    numbers = {"a": {0: 1.0}, "b": {0: 9.0}}
    noise = find_noise(numbers)
    assert noise.degrees == 0
    difference = compare_variants(numbers, noise, "a", "b")
    assert difference is not None and difference.value == -8.0 and math.isnan(difference.p)
    assert claims([difference]) == [""]


def test_the_noise_of_a_whole_grid_is_that_of_two_way_analysis() -> None:
    """Residuals from row mean + column mean - mean, with (V - 1)(S - 1) degrees of freedom."""
    values = np.array([list(by.values()) for by in GRID.values()])
    residuals = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    noise = find_noise(GRID)
    assert noise.degrees == 4
    assert noise.sd == pytest.approx(math.sqrt((residuals**2).sum() / 4))


def test_two_variants_alone_give_the_paired_t_test() -> None:
    pair = {name: GRID[name] for name in ("a", "b")}
    difference = compare_variants(pair, find_noise(pair), "a", "b")
    assert difference is not None and difference.seeds == 3 and difference.same_sign
    assert difference.p == pytest.approx(difference.p_own)


def test_variants_of_one_training_are_compared_by_their_own_pairs() -> None:
    """Of a study of sampling settings one training a seed is left to tell the noise from."""
    pair = {name: GRID[name] for name in ("a", "b")}
    difference = compare_variants(pair, find_noise({"a": GRID["a"]}), "a", "b")
    assert difference is not None and difference == compare_variants(pair, find_noise(pair), "a", "b")


def test_only_common_seeds_are_paired() -> None:
    numbers = {"a": {0: 1.0, 1: 2.0}, "b": {1: 5.0, 2: 7.0}, "c": {3: 1.0}}
    noise = find_noise(GRID)
    difference = compare_variants(numbers, noise, "a", "b")
    assert difference is not None and (difference.value, difference.seeds) == (-3.0, 1)
    assert compare_variants(numbers, noise, "a", "c") is None


def test_a_difference_that_one_seed_contradicts_is_not_claimed() -> None:
    numbers = {"a": {0: 0.0, 1: 0.0, 2: 0.0}, "b": {0: 9.0, 1: 9.0, 2: -0.1}}
    noise = find_noise({name: {seed: 1e-6 * seed for seed in range(3)} for name in "ab"} | GRID)
    difference = compare_variants(numbers, noise, "b", "a")
    assert difference is not None and not difference.same_sign
    assert claims([difference]) == [""]


def test_equal_variants_are_rarely_told_apart_and_different_ones_are() -> None:
    """Of 300 studies of 8 equal variants with 3 seeds at most one in twenty claims anything (Holm); an effect
    of five times the noise is found in nearly all."""
    generator = np.random.default_rng(0)
    wrong = found = 0
    for _ in range(300):
        numbers = {
            str(variant): dict(enumerate(generator.normal(size=3) + [0.0, 2.0, 4.0])) for variant in range(8)
        }
        noise = find_noise(numbers)
        pairs = [compare_variants(numbers, noise, str(variant), "0") for variant in range(1, 8)]
        wrong += any(claims([pair for pair in pairs if pair is not None]))
        numbers["7"] = {seed: value - 5 for seed, value in numbers["7"].items()}
        pairs = [compare_variants(numbers, noise, str(variant), "0") for variant in range(1, 8)]
        found += claims([pair for pair in pairs if pair is not None])[-1] == "lower"
    assert wrong <= 15 + 9 and found > 280
