"""Means over seeds, and differences paired by seed: what the seeds show, and what they do not.

A number of variant v with seed s is taken as (effect of v) + (effect of s) + noise. The noise is estimated
from all variants together, since three seeds of one variant say little about it: its standard deviation from
the residuals of the least-squares fit, with as many degrees of freedom as there are numbers beyond effects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from diffmoe_scale.evaluation.harness.statistics import Estimate, correct_for_number

LEVEL = 0.05
"""A difference is claimed below this probability that there is none."""

Numbers = Mapping[str, Mapping[int, float]]
"""By variant and seed."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a number beyond the effects of its variant and its seed."""

    sd: float
    degrees: int


@dataclass(frozen=True)
class Difference:
    """A variant minus another over their common seeds, with its 95 % interval.

    `p` is the chance of so large a mean without a difference, by the noise of all variants; `p_own` by the
    spread of these pairs alone (paired t-test; nan of one pair), as `p` where the noise is unknown.
    `same_sign` says whether all seeds agree.
    """

    variant: str
    other: str
    value: float
    low: float
    high: float
    p: float
    p_own: float
    seeds: int
    same_sign: bool


def estimate_seeds(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval; of one seed the interval is unknown (nan)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan, len(values))
    half = _quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def find_noise(numbers: Numbers) -> Noise:
    """Of complete and incomplete grids; the standard deviation is nan without a degree of freedom."""
    cells = [(variant, seed, value) for variant, by in numbers.items() for seed, value in by.items()]
    variants = list(numbers)
    seeds = sorted({seed for _, seed, _ in cells})
    design = np.zeros((len(cells), len(variants) + len(seeds)))
    for place, (variant, seed, _) in enumerate(cells):
        design[place, variants.index(variant)] = 1
        design[place, len(variants) + seeds.index(seed)] = 1
    degrees = len(cells) - int(np.linalg.matrix_rank(design)) if cells else 0
    if degrees <= 0:
        return Noise(math.nan, 0)
    values = np.array([value for _, _, value in cells])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return Noise(math.sqrt(float(((values - fitted) ** 2).sum()) / degrees), degrees)


def compare_variants(numbers: Numbers, noise: Noise, variant: str, other: str) -> Difference | None:
    """None without a common seed. Where the noise is unknown, that of the pairs themselves is taken."""
    mine, theirs = numbers.get(variant, {}), numbers.get(other, {})
    pairs = np.array([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])
    if not len(pairs):
        return None
    value, count = float(pairs.mean()), len(pairs)
    error_own = float(pairs.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    error, degrees = noise.sd * math.sqrt(2 / count), noise.degrees
    if degrees == 0:
        error, degrees = error_own, count - 1
    half = _quantile(degrees) * error if degrees else math.nan
    return Difference(
        variant=variant,
        other=other,
        value=value,
        low=value - half,
        high=value + half,
        p=_p_value(value, error, degrees),
        p_own=_p_value(value, error_own, count - 1),
        seeds=count,
        same_sign=bool((pairs > 0).all() or (pairs < 0).all()),
    )


def claims(differences: Sequence[Difference]) -> list[str]:
    """For each of them `lower`, `higher` or "" for what the seeds do not show: below LEVEL after Holm's
    correction for their number, and with the same sign in at least two seeds, all of them."""
    known = {str(place): found.p for place, found in enumerate(differences) if math.isfinite(found.p)}
    corrected = correct_for_number(known)
    verdicts = []
    for place, found in enumerate(differences):
        is_shown = found.seeds > 1 and found.same_sign and corrected.get(str(place), 1.0) < LEVEL
        verdicts.append(("lower" if found.value < 0 else "higher") if is_shown else "")
    return verdicts


def _quantile(degrees: int) -> float:
    return float(stats.t.ppf(0.975, degrees))


def _p_value(value: float, error: float, degrees: int) -> float:
    """Two-sided; nan if the noise is unknown."""
    if degrees <= 0 or not math.isfinite(error):
        return math.nan
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, degrees))
