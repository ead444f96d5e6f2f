"""The section of expert health: shown as logged, and nothing for runs that did not log it."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffmoe_scale.report import health_plots
from diffmoe_scale.report.health import health_section, read_together
from diffmoe_scale.report.health_plots import plot_bars, plot_calibration, plot_together
from diffmoe_scale.report.report import write_report
from diffmoe_scale.report.training import read_records
from tests.report.runs import LAYERS, check_page, make_run


def test_section_shows_a_row_and_curves_a_block(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    text = health_section(read_records(run / "metrics.jsonl"), read_together(run / "experts.json"))
    check_page(text)
    assert text.count("<figure") == 4
    assert "1.250 with a condition." in text and "without" not in text
    for layer in LAYERS:
        assert f"<td>{layer}</td>" in text
        assert f">{0.1 * layer:.3g}</td>" in text


def test_runs_that_did_not_log_it_have_no_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bare = [{name: value for name, value in line.items() if "health" not in name} for line in lines]
    assert health_section(bare, read_together(run / "experts.json")) == ""
    assert health_section([{"step": 1, "moe/health/overlap": [0.5]}], {}) == ""  # no block with a load
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    assert "Expert health" not in write_report(run).read_text()


def test_a_damaged_file_of_experts_costs_its_figure_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "experts.json").write_text('{"blocks": {"1": {"together": [1, 2, 3]}}}')
    assert "Overlap of two experts" in write_report(run).read_text()


def test_heat_maps_are_shares_of_the_tokens_of_the_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Expert 0 takes 2 tokens of 4, both also expert 1's, which takes 4."""
    run = make_run(tmp_path / "run")
    together = {"1": {"together": [0.5, 0.5, 0.5, 1.0]}}
    (run / "experts.json").write_text(json.dumps({"step": 1, "blocks": together}))
    seen: list[Mapping[int, np.ndarray]] = []

    def plot(shares: Mapping[int, np.ndarray]) -> str:
        seen.append(shares)
        return plot_together(shares)

    monkeypatch.setattr("diffmoe_scale.report.health.plot_together", plot)
    health_section(read_records(run / "metrics.jsonl"), read_together(run / "experts.json"))
    assert seen[0][1].tolist() == [[1.0, 1.0], [0.5, 1.0]]


def test_bars_points_and_cells_stand_where_their_numbers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tenths of an axis of length 1: the middle of the first is 0.05, of a bar beside another less."""
    kept: list[Figure] = []

    def keep(figure: Figure) -> str:
        kept.append(figure)
        return ""

    monkeypatch.setattr(health_plots, "svg_text", keep)
    plot_bars({"a": [1.0] * 10, "b": [2.0] * 10})
    bars = [patch for patch in kept[0].axes[0].patches if isinstance(patch, Rectangle)]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert np.allclose((np.array(middles[:10]) + middles[10:]) / 2, np.arange(0.05, 1, 0.1))
    assert middles[0] < 0.05 < middles[10] and [bar.get_height() for bar in bars] == [1.0] * 10 + [2.0] * 10
    plot_calibration([0.1, 0.4, 0.5, 0.9])
    drawn = kept[1].axes[0].lines[1]
    assert np.allclose(np.asarray(drawn.get_xdata()), [0.125, 0.375, 0.625, 0.875])
    together_EE = np.array([[1.0, 0.25], [0.5, 1.0]])
    plot_together({3: together_EE})
    (image,) = kept[2].axes[0].images
    assert np.allclose(np.asarray(image.get_array()), together_EE) and image.get_clim() == (0.0, 1.0)
