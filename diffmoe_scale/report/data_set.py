"""A page about a set of shards: counts, histograms, samples, troubles."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffmoe_scale.data.reading.batch import to_unit_range
from diffmoe_scale.prepare.facts import Facts, Lengths
from diffmoe_scale.prepare.survey import Survey
from diffmoe_scale.report import html
from diffmoe_scale.report.plots import plot_histograms
from diffmoe_scale.telemetry.picture_grid import save_image_grid
from diffmoe_scale.words import counted

SAMPLE_COLUMNS = 8


def data_set_page(
    survey: Survey, facts: Facts, lengths: Lengths, *, troubles: Sequence[str], title: str
) -> str:
    """The whole page as HTML."""
    histograms = plot_histograms(
        {
            "width": survey.widths,
            "height": survey.heights,
            "width / height": survey.aspects(),
            f"caption length in {lengths.unit}": lengths.values,
        }
    )
    looked = (
        f"From {survey.looked:,} of {counted(survey.samples, 'sample', ',')}, spread evenly over the shards."
    )
    parts = [
        html.element("h1", title),
        html.element("p", looked, kind="note"),
        html.table(facts),
        html.element("h2", "Sizes and captions"),
        html.figure(histograms.encode(), kind="svg", caption="numbers of samples (of captions)"),
    ]
    if survey.shown:
        grid = html.figure(_draw_samples(survey), kind="png", caption="the first caption of each")
        parts += [html.element("h2", "Samples"), grid]
    if troubles:
        parts += [html.element("h2", "Troubles"), html.element("pre", "\n".join(troubles))]
    return html.page(title, html.join(parts))


def _draw_samples(survey: Survey) -> bytes:
    """A PNG of the shown samples with their captions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        pixels_BHWC = torch.from_numpy(np.stack([pixels for pixels, _ in survey.shown]))
        captions = [caption for _, caption in survey.shown]
        save_image_grid(to_unit_range(pixels_BHWC), captions, path, SAMPLE_COLUMNS)
        return path.read_bytes()
