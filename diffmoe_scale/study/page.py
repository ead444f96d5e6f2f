"""OUTPUT/report.html and OUTPUT/report.md: what a study found so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffmoe_scale.config.study import StudyConfig
from diffmoe_scale.files import replace_file
from diffmoe_scale.report.evaluation_tables import Table, markdown_rows
from diffmoe_scale.report.html import Markup, element, facts, figure, join, page, table
from diffmoe_scale.study.commands import TRAINING
from diffmoe_scale.study.cost import Cost, duration
from diffmoe_scale.study.plots import Band, plot_bands
from diffmoe_scale.study.record import RowResult
from diffmoe_scale.study.tables import cost_table, difference_table, expected_table, final_table
from diffmoe_scale.study.variants import Row, Variant

STYLE = Markup(
    "<style>main { max-width: 1500px } .wide { overflow-x: auto } td.number { white-space: nowrap }</style>"
)


def study_tables(
    config: StudyConfig,
    rows: Sequence[Row],
    results: Sequence[RowResult],
    costs: Mapping[str, Cost],
    commands: Mapping[str, str],
) -> list[Table]:
    """In the order of the page. `commands` make a row again, by its name."""
    tables = [final_table(config, results, costs)]
    for kind in ("loss", "score"):
        if len(config.variants) > 1:
            tables.append(difference_table(config, results, kind))
        if config.study.expected:
            tables.append(expected_table(config, results, kind))
    return [*tables, cost_table(rows, results, commands)]


def write_page(
    config: StudyConfig,
    variants: Sequence[Variant],
    rows: Sequence[Row],
    results: Sequence[RowResult],
    *,
    costs: Mapping[str, Cost],
    commands: Mapping[str, str],
    failures: Mapping[str, str],
) -> Path:
    """Write both files and return the path of the page. Raises: OSError."""
    output = Path(config.study.output)
    tables = study_tables(config, rows, results, costs, commands)
    title = f"Study {output.resolve().name}"
    body = [
        STYLE,
        element("h1", title),
        element("p", str(output.resolve()), kind="note"),
        facts(_facts(config, rows, results)),
        *[element("p", f"{name} failed: {why}", kind="missing") for name, why in failures.items()],
        element("h2", "Over training"),
        *_curves(config, results),
        *[part for found in tables for part in _section(found)],
        element("h2", "Variants"),
        _variants(variants),
        element("footer", f"Written {time.strftime('%Y-%m-%d %H:%M')} by diffmoe_scale."),
    ]
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "report.html", page(title, join(body)).encode("utf-8", "replace"))
    replace_file(output / "report.md", _markdown(title, tables).encode("utf-8", "replace"))
    return output / "report.html"


def _facts(
    config: StudyConfig, rows: Sequence[Row], results: Sequence[RowResult]
) -> list[tuple[str, str, str]]:
    run = rows[0].config.run
    trainings = {result.training: result.seconds.get(TRAINING, 0.0) for result in results}
    scoring = sum(result.total_seconds - result.seconds.get(TRAINING, 0.0) for result in results)
    seconds = sum(trainings.values()) + scoring
    return [
        ("Variants", str(len(config.variants)), f"baseline {config.baseline}"),
        ("Rows", f"{len(results)} of {len(rows)}", f"seeds {', '.join(map(str, config.study.seeds))}"),
        ("Steps", f"{run.steps:,}", f"of {run.global_batch} pictures"),
        ("Time of rows", duration(seconds), f"{config.study.at_once} at once"),
    ]


def _curves(config: StudyConfig, results: Sequence[RowResult]) -> list[Markup]:
    if not results:
        return [element("p", "No row is done yet.", kind="missing")]

    def bands(points: Callable[[RowResult], Sequence[tuple[int, float]]]) -> list[Band]:
        found = []
        for variant in config.variants:
            values: dict[int, list[float]] = {}
            for result in results:
                for step, value in points(result) if result.variant == variant.name else ():
                    values.setdefault(step, []).append(value)
            found.append(Band(variant.name, values))
        return found

    losses = plot_bands(
        bands(lambda result: result.losses), title="Validation loss at the deployed rule", is_logarithmic=True
    )
    scores = plot_bands(
        bands(lambda result: [(score.step, 100 * score.mean) for score in result.scores]),
        title="Score, per cent",
    )
    caption = "Mean over seeds; the band goes from the lowest to the highest seed."
    fewer = (
        f"{caption} The last point is of {config.study.prompts} prompts a suite, those before of "
        f"{config.study.curve_prompts}."
    )
    return [
        figure(losses.encode(), kind="svg", caption=caption),
        figure(scores.encode(), kind="svg", caption=fewer),
    ]


def _section(found: Table) -> list[Markup]:
    drawn = table(found.rows, header=found.header, numbers=found.numbers)
    return [
        element("h2", found.title),
        element("p", found.note, kind="note"),
        element("div", drawn, kind="wide"),
    ]


def _variants(variants: Sequence[Variant]) -> Markup:
    rows = [
        [variant.name, variant.note, ", ".join(f"{key}={value}" for key, value in variant.settings.items())]
        for variant in variants
    ]
    return table(rows, header=["variant", "what it is", "settings"])


def _markdown(title: str, tables: Sequence[Table]) -> str:
    lines = [f"# {title}"]
    for found in tables:
        lines += ["", f"## {found.title}", "", found.note, ""]
        lines += markdown_rows(found)
    return "\n".join(lines) + "\n"
