"""What a study found, as tables of text."""

import math
from collections.abc import Mapping, Sequence

from diffmoe_scale.config.study import StudyConfig
from diffmoe_scale.evaluation.harness.statistics import Estimate
from diffmoe_scale.report.evaluation_tables import Table
from diffmoe_scale.scenes.suites import SUITES
from diffmoe_scale.study.cost import Cost, deviation_of, duration
from diffmoe_scale.study.record import RowResult
from diffmoe_scale.study.statistics import (
    Difference,
    Noise,
    Numbers,
    claims,
    compare_variants,
    estimate_seeds,
    find_noise,
)
from diffmoe_scale.study.variants import Row
from diffmoe_scale.words import counted

CLAIM = {
    ("loss", "lower"): "better",
    ("loss", "higher"): "worse",
    ("score", "higher"): "better",
    ("score", "lower"): "worse",
}
NOT_SHOWN = "not shown"


def final_table(config: StudyConfig, results: Sequence[RowResult], costs: Mapping[str, Cost]) -> Table:
    """A line a variant: means over seeds."""
    rows = []
    for name in _names(config):
        mine = [result for result in results if result.variant == name]
        if not mine:
            rows.append([name, "0", *["waiting"] + [""] * (len(SUITES) + 4)])
            continue
        suites = [
            _percent(estimate_seeds([row.score.suites[suite] for row in mine]).value) for suite in SUITES
        ]
        capacity = estimate_seeds([row.score.capacity for row in mine]).value
        rows.append(
            [
                name,
                str(len(mine)),
                _with_interval(estimate_seeds([1000 * row.loss for row in mine]), 3),
                _with_interval(estimate_seeds([100 * row.score.mean for row in mine]), 1),
                *suites,
                f"{capacity:.2f}",
                f"{100 * deviation_of(costs, name, config.baseline):+.1f}",
                duration(estimate_seeds([row.total_seconds for row in mine]).value),
            ]
        )
    header = ["variant", "seeds", "loss x 1000", "score", *SUITES, "capacity", "operations, %", "time a row"]
    note = (
        "Validation loss at the rule of drawing pictures, averaged weights; scores in per cent; means over "
        "seeds, in brackets Student's 95 % interval of the mean. Operations of a picture against "
        f"{config.baseline}."
    )
    return Table("Final", note, header, rows, range(1, len(header)))


def difference_table(config: StudyConfig, results: Sequence[RowResult], kind: str) -> Table:
    """Of `loss` (in per cent) or `score` (in points): all variants against the baseline."""
    pairs = [(name, config.baseline) for name in _names(config) if name != config.baseline]
    title = f"{'Loss' if kind == 'loss' else 'Score'} against {config.baseline}"
    return _differences(title, results, kind, pairs)


def expected_table(config: StudyConfig, results: Sequence[RowResult], kind: str) -> Table:
    """The pairs of study.expected, the better first."""
    title = f"Claimed order, by {kind}"
    return _differences(title, results, kind, config.study.expected)


def _differences(
    title: str, results: Sequence[RowResult], kind: str, pairs: Sequence[tuple[str, str]]
) -> Table:
    numbers = numbers_of(results, kind)
    noise = find_noise(numbers_of(_of_own_trainings(results), kind))
    found = [compare_variants(numbers, noise, *pair) for pair in pairs]
    known = [difference for difference in found if difference is not None]
    verdicts = iter(claims(known))
    rows = []
    for (variant, other), difference in zip(pairs, found, strict=True):
        if difference is None:
            rows.append([variant, other, "waiting", "", "", "", ""])
            continue
        verdict = CLAIM.get((kind, next(verdicts)), NOT_SHOWN)
        rows.append([variant, other, *_cells(difference, kind), verdict])
    unit = "per cent of the loss" if kind == "loss" else "points of the score"
    header = ["variant", "against", f"difference, {unit}", "p", "p of its own pairs", "seeds", "shown"]
    return Table(title, _note(noise, kind), header, rows, range(2, 6))


def numbers_of(results: Sequence[RowResult], kind: str) -> Numbers:
    """Logarithms of losses, whose differences are relative ones; or scores in per cent."""
    numbers: dict[str, dict[int, float]] = {}
    for row in results:
        value = math.log(row.loss) if kind == "loss" else 100 * row.score.mean
        numbers.setdefault(row.variant, {})[row.seed] = value
    return numbers


def _of_own_trainings(results: Sequence[RowResult]) -> list[RowResult]:
    """Without rows that share another's training, whose noise is the same."""
    return list({result.training: result for result in reversed(results)}.values())


def cost_table(rows: Sequence[Row], results: Sequence[RowResult], commands: Mapping[str, str]) -> Table:
    """A line a row: its numbers, its time and the command that makes it again."""
    by_name = {(result.variant, result.seed): result for result in results}
    lines = []
    for row in rows:
        result = by_name.get((row.variant.name, row.seed))
        found = (
            ["waiting", "", ""]
            if result is None
            else [
                f"{1000 * result.loss:.3f}",
                f"{100 * result.score.mean:.1f}",
                duration(result.total_seconds),
            ]
        )
        lines.append([row.variant.name, str(row.seed), *found, commands[row.name]])
    header = ["variant", "seed", "loss x 1000", "score", "time", "command"]
    note = "Time of training and scores, as long as the row took with the others beside it."
    return Table("Rows", note, header, lines, range(1, 5))


def _names(config: StudyConfig) -> list[str]:
    return [variant.name for variant in config.variants]


def _cells(found: Difference, kind: str) -> list[str]:
    def shown(value: float) -> str:
        return f"{100 * math.expm1(value):+.1f}" if kind == "loss" else f"{value:+.1f}"

    interval = f" [{shown(found.low)}, {shown(found.high)}]" if math.isfinite(found.low) else ""
    return [f"{shown(found.value)}{interval}", _p(found.p), _p(found.p_own), str(found.seeds)]


def _note(noise: Noise, kind: str) -> str:
    spread = f"{100 * noise.sd:.1f} %" if kind == "loss" else f"{noise.sd:.1f} points"
    source = (
        f"the noise of all variants ({spread} a row, {counted(noise.degrees, 'degree')} of freedom)"
        if noise.degrees
        else "the spread of the pairs themselves, as no two trainings tell more"
    )
    return (
        f"Paired by seed, with the 95 % interval by {source}. Shown is what stays below 0.05 after Holm's "
        "correction and has the same sign in every seed, at least two; `not shown` does not mean equal."
    )


def _with_interval(found: Estimate, digits: int) -> str:
    text = f"{found.value:.{digits}f}"
    return f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]" if math.isfinite(found.low) else text


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _p(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"
