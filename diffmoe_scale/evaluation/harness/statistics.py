"""Confidence intervals of scores, and tests of the difference of two on the same prompts.

Pictures of one prompt are alike, so that a prompt, not a picture, is one observation: the mean over its
pictures, between 0 and 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NORMAL_95 = 1.959963984540054
RESAMPLES = 9999
ALIKE = 1e-12
"""Scores that differ by less are equal but for rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval, of `count` observations."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired observations with its 95 % confidence interval, and the two-sided p of
    the sign-flip test (the chance of so large a mean if each difference were as likely of either sign)."""

    value: float
    low: float
    high: float
    p: float
    count: int


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Wilson's interval with the number of observations corrected for their variance: of values 0 and 1 it is
    Wilson's own, and it has a length also for values that are all alike."""
    mean = float(np.mean(values))
    spread = _variance(np.asarray(values), correction=0)
    count = len(values)
    # Of values that are all alike (one prompt, say) the variance is not known: that of shares is the largest.
    effective = count * mean * (1 - mean) / spread if spread > 0 else float(count)
    z2 = NORMAL_95**2 / effective
    center = (mean + z2 / 2) / (1 + z2)
    half = math.sqrt(max(0.0, z2 * mean * (1 - mean) + z2**2 / 4)) / (1 + z2)
    return Estimate(mean, max(0.0, min(center - half, mean)), min(1.0, max(center + half, mean)), count)


def mean_of_estimates(parts: Sequence[Estimate]) -> Estimate:
    """The mean over groups of independent observations: the distances to the ends of the intervals add as
    squares (Newcombe; Zou and Donner 2008)."""
    value = float(np.mean([part.value for part in parts]))
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Estimate(
        value, max(0.0, value - below), min(1.0, value + above), sum(part.count for part in parts)
    )


def estimate(values: Sequence[float], groups: Sequence[str], *, means_of_groups: bool) -> Estimate:
    """Of values that belong to groups: the mean over groups, or over all."""
    if not means_of_groups:
        return estimate_mean(values)
    return mean_of_estimates(list(estimate_groups(values, groups).values()))


def estimate_groups(values: Sequence[float], groups: Sequence[str]) -> dict[str, Estimate]:
    """By group, in the order of their first values."""
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: estimate_mean(part) for group, part in members.items()}


def compare(
    before: Sequence[float], after: Sequence[float], groups: Sequence[str], *, means_of_groups: bool
) -> Difference:
    """`after` minus `before`, paired by prompt, weighted so that the value is the difference of scores."""
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    weights = _weights(groups) if means_of_groups else np.full(len(differences), 1 / len(differences))
    value = float(weights @ differences)
    error = _standard_error(differences, weights, groups if means_of_groups else [""] * len(differences))
    half = NORMAL_95 * error
    return Difference(value, value - half, value + half, _sign_flip(differences * weights), len(differences))


def _weights(groups: Sequence[str]) -> np.ndarray:
    names = list(groups)
    counts = {name: names.count(name) for name in set(names)}
    return np.array([1 / (counts[name] * len(counts)) for name in names])


def _standard_error(differences: np.ndarray, weights: np.ndarray, groups: Sequence[str]) -> float:
    """Of the weighted mean, with the variance within each group; of a group of one prompt, that of all."""
    variance = 0.0
    names = np.asarray(groups)
    for name in set(groups):
        mine = names == name
        members = differences[mine] if mine.sum() > 1 else differences
        variance += float((weights[mine] ** 2).sum()) * _variance(members, correction=1)
    return math.sqrt(variance)


def _variance(values: np.ndarray, *, correction: int) -> float:
    """0 of values that are all alike, also of a single one."""
    is_alike = values.max() - values.min() <= ALIKE
    return 0.0 if is_alike else float(values.var(ddof=correction))


def _sign_flip(terms: np.ndarray) -> float:
    """Exact for few terms that are not 0, else from random flips of a fixed seed."""
    terms = terms[terms != 0]
    if not len(terms):
        return 1.0
    if len(terms) == 1:
        return 1.0  # both signs give as large a mean
    found = stats.permutation_test(
        (terms,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(terms)),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def correct_for_number(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several p values."""
    largest, corrected = 0.0, {}
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(ps) - rank)))
        corrected[name] = largest
    return corrected
