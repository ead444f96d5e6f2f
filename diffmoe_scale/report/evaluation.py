"""OUTPUT/report.html and OUTPUT/report.md: what an evaluation of many checkpoints found."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffmoe_scale.evaluation.harness.result import JobResult
from diffmoe_scale.files import replace_file
from diffmoe_scale.report.evaluation_pictures import chosen, picture_file, pictures_section
from diffmoe_scale.report.evaluation_tables import (
    Table,
    by_suite,
    difference_tables,
    labels,
    markdown_cell,
    markdown_rows,
    metric_tables,
    score_tables,
    waiting_rows,
)
from diffmoe_scale.report.html import Markup, element, facts, figure, join, page, table
from diffmoe_scale.report.plots import Curve, plot_curves
from diffmoe_scale.words import counted

TITLES = {
    "Scores": score_tables,
    "Metrics": metric_tables,
    "Differences": difference_tables,
}
STYLE = Markup(
    "<style>main { max-width: 1400px } .wide { overflow-x: auto } td.number { white-space: nowrap } "
    ".wide td:first-child { white-space: nowrap } "
    "img.tile { width: 128px; image-rendering: pixelated }</style>"
)


def write_evaluation_report(output: Path, results: Sequence[JobResult]) -> Path:
    """Write both files and return the path of the page. Raises: OSError."""
    sections = {title: make(results) for title, make in TITLES.items()}
    body = [
        element("h1", f"Evaluation {output.resolve().name}"),
        element("p", str(output.resolve()), kind="note"),
        facts(_facts(results)),
        *_waiting(results),
        *_html_tables("Scores", sections["Scores"]),
        *_html_tables("Metrics", sections["Metrics"]),
        *_curves(results),
        *_html_tables("Differences", sections["Differences"]),
        *([pictures_section(output, results)] if results else []),
        element("footer", f"Written {time.strftime('%Y-%m-%d %H:%M')} by diffmoe_scale."),
    ]
    text = page(f"Evaluation {output.resolve().name}", join([STYLE, *body]))
    replace_file(output / "report.html", text.encode("utf-8", "replace"))
    replace_file(output / "report.md", _markdown(output, results, sections).encode("utf-8", "replace"))
    return output / "report.html"


def _facts(results: Sequence[JobResult]) -> list[tuple[str, str, str]]:
    checkpoints = {(result.run, result.step) for result in results}
    pictures = sum(len(result.files) for result in results)
    return [
        ("Checkpoints", str(len(checkpoints)), ""),
        ("Suites", str(len({result.suite for result in results})), ""),
        ("Results", str(len(results)), "weights by settings by suites"),
        ("Pictures", f"{pictures:,}", "the same noise for all"),
    ]


def _waiting(results: Sequence[JobResult]) -> list[Markup]:
    rows = waiting_rows(results)
    if not rows:
        return []
    lines = [element("p", element("code", folder), " ", what, kind="missing") for folder, what in rows]
    return [element("h2", "Without a score so far"), *lines]


def _html_tables(title: str, tables: Sequence[Table]) -> list[Markup]:
    if not tables:
        return []
    parts = [element("h2", title)]
    for found in tables:
        parts.append(element("h3", found.title))
        drawn = table(found.rows, header=found.header, numbers=found.numbers)
        parts += [element("p", found.note, kind="note"), element("div", drawn, kind="wide")]
    return parts


def _curves(results: Sequence[JobResult]) -> list[Markup]:
    """Scores over training, where a run has several steps."""
    panels: dict[str, list[Curve]] = {}
    for suite, members in by_suite(results):
        lines: dict[str, list[tuple[int, float, float, float]]] = {}
        for name, result in zip(_without_step(members), members, strict=True):
            for scorer, scores in result.scores.items():
                panel = f"{suite}, {scorer}"
                total = scores.total
                point = (result.step, 100 * total.value, 100 * total.low, 100 * total.high)
                lines.setdefault(f"{panel}\n{name}", []).append(point)
        for key, points in lines.items():
            if len(points) > 1:
                panel, _, name = key.partition("\n")
                steps, values, low, high = np.array(sorted(points), dtype=float).T
                curves = panels.setdefault(panel, [])
                color = len(curves)
                curves.append(Curve(name, steps, values, color, is_noisy=False, low=low, high=high))
    if not panels:
        return []
    caption = "Scores in per cent over the steps of training; bands are 95 % confidence intervals."
    return [element("h2", "Over training"), figure(plot_curves(panels).encode(), kind="svg", caption=caption)]


def _without_step(results: Sequence[JobResult]) -> list[str]:
    """Labels of lines over training."""
    return [
        ", ".join(word for word in name.split(", ") if not word.startswith("step "))
        for name in labels(results)
    ]


def _markdown(output: Path, results: Sequence[JobResult], sections: dict[str, list[Table]]) -> str:
    count = counted(len(results), "result")
    lines = [
        f"# Evaluation {markdown_cell(output.resolve().name)}",
        "",
        f"{count}; the same noise for all.",
        "",
    ]
    for folder, what in waiting_rows(results):
        lines += [f"- without a score so far: `{folder}`: {markdown_cell(what)}"]
    for title, tables in sections.items():
        for found in tables:
            lines += ["", f"## {title}: {markdown_cell(found.title)}", "", markdown_cell(found.note), ""]
            lines += markdown_rows(found)
    for suite, members in by_suite(results):
        prompts, shown = chosen(members)
        rows = [["prompt", *(name for name, _ in shown)], ["---"] * (len(shown) + 1)]
        lines += ["", f"## Side by side: {markdown_cell(suite)}", ""]
        lines += [f"| {' | '.join(markdown_cell(cell) for cell in row)} |" for row in rows]
        for prompt in prompts:
            files = [picture_file(result, prompt) for _, result in shown]
            pictures = " | ".join(f"![]({file.replace(' ', '%20')})" for file in files)
            lines.append(f"| {markdown_cell(members[0].prompts[prompt])} | {pictures} |")
    return "\n".join(lines) + "\n"
