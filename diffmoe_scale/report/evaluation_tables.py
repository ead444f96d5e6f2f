"""What an evaluation of many checkpoints found, as tables: scores, metrics, differences."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any  # values of settings

from diffmoe_scale.evaluation.harness.result import JobResult
from diffmoe_scale.evaluation.harness.statistics import (
    Difference,
    Estimate,
    compare,
    correct_for_number,
)
from diffmoe_scale.plan.picture import format_flops
from diffmoe_scale.words import counted

MAX_GROUPS = 12
"""Groups and parts that are columns of a table; of more the first are shown."""
MAX_DIFFERENCES = 200


@dataclass(frozen=True)
class Table:
    """`numbers` are columns set to the right."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


def markdown_rows(found: Table) -> list[str]:
    """The lines of a table of Markdown."""
    rules = ["---:" if column in found.numbers else "---" for column in range(len(found.header))]
    rows = [found.header, rules, *found.rows]
    return [f"| {' | '.join(map(markdown_cell, row))} |" for row in rows]


def markdown_cell(text: str) -> str:
    """Text that a table of Markdown can hold."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def labels(results: Sequence[JobResult]) -> list[str]:
    """What tells each result from the others: run, step, weights, settings that differ."""
    axes = [axes_of(result) for result in results]
    differing = _differing(axes)
    if "step" not in differing:
        differing.insert(0, "step")
    return [", ".join(_word(name, axis[name]) for name in differing if name in axis) for axis in axes]


def axes_of(result: JobResult) -> dict[str, Any]:
    """Everything along which results are compared."""
    return {"run": result.run, "step": result.step, "weights": result.weights, **result.varied}


def score_tables(results: Sequence[JobResult]) -> list[Table]:
    """One for each suite and scorer."""
    tables = []
    for suite, members in by_suite(results):
        names = labels(members)
        for scorer in dict.fromkeys(itertools.chain(*(result.scores for result in members))):
            scored = [
                (name, result) for name, result in zip(names, members, strict=True) if scorer in result.scores
            ]
            columns = _columns(scored[0][1], scorer)
            rows = [
                [
                    name,
                    estimate_text(result.scores[scorer].total),
                    *(estimate_text(_part(result, scorer, column)) for column in columns),
                    f"{result.capacity:.3f}",
                    f"{result.calls:.4g}",
                    format_flops(result.flops),
                    f"{result.seconds:.3g}",
                ]
                for name, result in scored
            ]
            header = ["weights", "score", *columns, "capacity", "calls", "operations", "seconds"]
            first = scored[0][1]
            mean = "mean over groups" if first.means_of_groups else "mean over prompts"
            copies = len(first.files) // max(1, len(first.prompts))
            note = (
                f"Scored by {scorer}, {mean}, in per cent with the 95 % confidence interval; "
                f"{len(first.scores[scorer].prompts)} prompts with {counted(copies, 'picture')} each. "
                "Capacity, network calls, "
                "operations and seconds are measured and for one picture."
            )
            tables.append(Table(suite, note, header, rows, range(1, len(header))))
    return tables


def metric_tables(results: Sequence[JobResult]) -> list[Table]:
    """One for each suite whose pictures were measured."""
    tables = []
    for suite, members in by_suite(results):
        measured = [
            (name, result) for name, result in zip(labels(members), members, strict=True) if result.metrics
        ]
        if not measured:
            continue
        columns = list(dict.fromkeys(value["name"] for _, result in measured for value in result.metrics))
        rows = []
        for name, result in measured:
            found = {value["name"]: value for value in result.metrics}
            cells = [_metric(found[column]) if column in found else "" for column in columns]
            rows.append([name, *cells, f"{result.capacity:.3f}", format_flops(result.flops)])
        note = _conditions(measured[0][1].metrics)
        header = ["weights", *columns, "capacity", "operations"]
        tables.append(Table(suite, note, header, rows, range(1, len(header))))
    return tables


def _conditions(metrics: Sequence[dict[str, Any]]) -> str:
    """What metrics depend on; those that share it are named together."""
    names: dict[str, list[str]] = {}
    for value in metrics:
        condition = (
            f"{value['pictures']} pictures, {value['backbone']} {value['backbone_fingerprint']}, "
            f"{value['resize']}" + (f", against {value['reference']}" if value["reference"] else "")
        )
        names.setdefault(condition, []).append(value["name"])
    return "; ".join(f"{', '.join(shared)}: {condition}" for condition, shared in names.items())


def difference_tables(results: Sequence[JobResult]) -> list[Table]:
    """Pairs that differ in one thing alone, for each suite and scorer: neighbours, and the first and last."""
    tables = []
    for suite, members in by_suite(results):
        for scorer in dict.fromkeys(itertools.chain(*(result.scores for result in members))):
            scored = [result for result in members if scorer in result.scores]
            pairs = list(itertools.islice(_pairs(scored), MAX_DIFFERENCES))
            if not pairs:
                continue
            found = [(name, rest, _compare(before, after, scorer)) for name, rest, before, after in pairs]
            corrected = correct_for_number({str(row): one.p for row, (_, _, one) in enumerate(found)})
            rows = [
                [name, rest, *_difference_cells(one), _p(corrected[str(row)])]
                for row, (name, rest, one) in enumerate(found)
            ]
            note = (
                f"Scored by {scorer}. The same prompts from the same noise: differences are paired by "
                "prompt. p is "
                "that of the sign-flip test, corrected for the number of rows (Holm)."
            )
            header = ["change", "of", "difference", "95 % interval", "p", "p corrected"]
            tables.append(Table(suite, note, header, rows, range(2, len(header))))
    return tables


def waiting_rows(results: Sequence[JobResult]) -> list[tuple[str, str]]:
    """Results without a score that could have one: their folder, and what is to be done."""
    return [(result.folder, result.waiting) for result in results if result.waiting]


def by_suite(results: Sequence[JobResult]) -> Iterator[tuple[str, list[JobResult]]]:
    """Results that may be compared: of the same prompts and noise. A suite that was changed is two."""
    groups: dict[tuple[str, str, int], list[JobResult]] = {}
    for result in results:
        groups.setdefault((result.suite, result.suite_fingerprint, result.seed), []).append(result)
    names = [suite for suite, _, _ in groups]
    for (suite, fingerprint, seed), members in groups.items():
        is_alone = names.count(suite) == 1
        yield suite if is_alone else f"{suite} ({fingerprint}, seed {seed})", members


def estimate_text(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _columns(result: JobResult, scorer: str) -> list[str]:
    table = result.scores[scorer]
    return [*table.groups, *table.parts][:MAX_GROUPS]


def _part(result: JobResult, scorer: str, column: str) -> Estimate | None:
    table = result.scores[scorer]
    return table.groups.get(column) or table.parts.get(column)


def _pairs(results: Sequence[JobResult]) -> Iterator[tuple[str, str, JobResult, JobResult]]:
    """(what changes, what stays, before, after)."""
    axes = [axes_of(result) for result in results]
    names = _differing(axes)
    for name in names:
        lines: dict[str, list[tuple[Any, JobResult]]] = {}
        for axis, result in zip(axes, results, strict=True):
            rest = ", ".join(_word(other, axis[other]) for other in names if other != name and other in axis)
            if name in axis:
                lines.setdefault(rest, []).append((axis[name], result))
        for rest, line in lines.items():
            line.sort(key=lambda entry: (str(type(entry[0])), entry[0]))
            steps = list(itertools.pairwise(line)) + ([(line[0], line[-1])] if len(line) > 2 else [])
            for (before, first), (after, second) in steps:
                yield f"{_word(name, before)} to {_word(name, after)}", rest, first, second


def _compare(before: JobResult, after: JobResult, scorer: str) -> Difference:
    tables = before.scores[scorer], after.scores[scorer]
    return compare(
        tables[0].by_prompt,
        tables[1].by_prompt,
        [before.groups[prompt] for prompt in tables[0].prompts],
        means_of_groups=before.means_of_groups,
    )


def _difference_cells(found: Difference) -> list[str]:
    interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    if found.low == found.high:  # of differences that are all alike nothing is known
        interval = "no prompt differs" if found.value == 0 else "all prompts alike"
    return [f"{100 * found.value:+.1f}", interval, _p(found.p)]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _metric(value: Mapping[str, Any]) -> str:
    error = "" if value["error"] is None else f" \N{PLUS-MINUS SIGN} {value['error']:.3g}"
    return f"{value['value']:.4g}{error}"


def _word(name: str, value: Any) -> str:
    if name == "run":
        return PurePath(value).name
    return value if name == "weights" else f"{name} {value}"


def _differing(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all."""
    names = dict.fromkeys(itertools.chain(*axes))
    return [name for name in names if len({repr(axis.get(name)) for axis in axes}) > 1]
