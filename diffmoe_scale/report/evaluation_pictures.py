"""Pictures of several checkpoints side by side, from the same prompts and noise."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from diffmoe_scale.evaluation.harness.drawing import PICTURES
from diffmoe_scale.evaluation.harness.result import JobResult
from diffmoe_scale.report.evaluation_tables import by_suite, labels
from diffmoe_scale.report.html import Markup, element, join

MAX_ROWS, MAX_COLUMNS = 8, 8
SIDE = 128
"""Pixels of a picture in the page: larger ones are made smaller, smaller ones are shown larger."""


def chosen(results: Sequence[JobResult]) -> tuple[list[int], list[tuple[str, JobResult]]]:
    """Prompts evenly over the suite, and results with their labels, evenly over all."""
    prompts = _spread(len(results[0].prompts), MAX_ROWS)
    names = labels(results)
    return prompts, [(names[place], results[place]) for place in _spread(len(results), MAX_COLUMNS)]


def picture_file(result: JobResult, prompt: int) -> str:
    """The first picture of a prompt, below the evaluation's output."""
    copies = len(result.files) // len(result.prompts)
    return f"{result.folder}/{PICTURES}/{result.files[prompt * copies]}"


def pictures_section(output: Path, results: Sequence[JobResult]) -> Markup:
    """A table for each suite: a prompt a row, weights and settings as columns."""
    parts: list[Markup] = [element("h2", "Side by side")]
    for suite, members in by_suite(results):
        prompts, shown = chosen(members)
        header = element("tr", element("th", suite), *(element("th", name) for name, _ in shown))
        rows = [
            element(
                "tr",
                element("td", members[0].prompts[prompt]),
                *(element("td", _picture(output / picture_file(result, prompt))) for _, result in shown),
            )
            for prompt in prompts
        ]
        parts.append(element("div", element("table", header, *rows), kind="wide"))
        if len(shown) < len(members):
            parts.append(element("p", f"{len(shown)} of {len(members)} are shown.", kind="note"))
    return join(parts)


def _picture(path: Path) -> Markup:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return element("span", "missing", kind="note")
    small.thumbnail((SIDE, SIDE))
    data = BytesIO()
    small.save(data, "PNG")
    source = base64.b64encode(data.getvalue()).decode()
    return Markup(f'<img class="tile" alt="" width="{SIDE}" src="data:image/png;base64,{source}">')


def _spread(count: int, most: int) -> list[int]:
    return [place * count // min(count, most) for place in range(min(count, most))]
