"""What went wrong in a run, on its page; and pages of damaged runs."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.report import scores, training
from diffmoe_scale.report.report import write_report
from tests.report.runs import check_page, make_evaluation, make_run, write_metrics


def test_rollbacks_failed_saves_and_changed_shards_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    lines = {
        "rollback": "WARNING a: loss spikes; back to step 300, on behind sample 64: 640 samples are left out",
        "failed save": "ERROR b: checkpoint step_00000400 was not written (No space left on device); "
        "training goes on (checkpoint.on_write_error=continue)",
        "damaged checkpoint": "WARNING c: checkpoint runs/x/step_00000300 is damaged and not used: x",
        "changed shards": "WARNING d: 2 shards changed since the last start: a.tar (1000 samples, then 900)",
    }
    others = ["WARNING e: step 5: the loss is high"] * 50
    log = [f"2026-11-24 10:00:00 {line}" for line in [*lines.values(), *others]]
    (tmp_path / "log.txt").write_text("\n".join(log), encoding="utf-8")
    write_metrics(tmp_path, steps=20, every=10)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    rows = [html.unescape(re.sub("<[^>]*>", "|", row)) for row in page.split("<tr>")]
    for kind, line in lines.items():
        assert sum(f"|{kind}||2026-11-24 10:00:00 {line}|" in row for row in rows) == 1, kind
    assert "Warnings and errors in log.txt: the last 30 of 54" in page


def test_alarms_that_are_not_over_stand_in_a_table(tmp_path: Path) -> None:
    of_alarms = "diffmoe_scale.train.alarms: step"
    lines = [
        f"WARNING {of_alarms} 20, alarm dead/1: expert 2 of block 1 is dead; raise: this",
        f"WARNING {of_alarms} 20, alarm overlap/3: block 3: 0.90 of tokens; lower that",
        f"INFO {of_alarms} 40, alarm overlap/3 is over",
        f"INFO {of_alarms} 40, alarm never/1 is over",
        f"WARNING {of_alarms} 60, alarm dead/1: expert 2 of block 1 is dead; after a resume",
        f"WARNING {of_alarms} 80, alarm data: ranks wait",
        "INFO a: caption step 9, alarm fake/1: not of a run",
    ]
    log = [f"2026-11-24 10:00:00 {line}" for line in lines]
    (tmp_path / "log.txt").write_text("\n".join(log), encoding="utf-8")
    write_metrics(tmp_path, steps=20, every=10)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    rows = [html.unescape(re.sub("<[^>]*>", "|", row)) for row in page.split("<tr>")]
    assert any("|alarm||since step||2 alarms not over|" in row for row in rows)
    found = [row.strip("|\n").split("||")[:3] for row in rows if re.match(r"\|(dead|overlap|data|fake)", row)]
    assert [row[:2] for row in found] == [["dead/1", "60"], ["data", "80"]]
    assert found[0][2].startswith("expert 2 of block 1 is dead; after a resume")


def test_bad_and_skipped_steps_are_counted(tmp_path: Path) -> None:
    records = [
        {"step": step, "samples": step, "time": 1.0, "defence/bad_steps": 2.0, "optimizer/skipped_steps": 1.0}
        for step in range(1, 4)
    ]
    text = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "6 steps with a loss that is not finite" in page and "3 steps skipped" in page


def test_captions_in_file_names_settings_and_logs_run_no_code(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    (tmp_path / "log.txt").write_text(f"2026-11-24 10:00:00 WARNING a: caption {script}\n", encoding="utf-8")
    settings = load_config(None, [f"telemetry.sample_prompts=['{script}']"])
    (tmp_path / "config.yaml").write_text(dump_config(settings), encoding="utf-8")
    evaluation = make_evaluation(20)
    evaluation["sampling"] = {script: script}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    record = {"step": 1, "samples": 1, "time": 1.0, f"data/lost/{script}": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "script" not in check_page(page).tags and "&lt;script&gt;" in page


def damage(directory: Path, *, seed: int) -> None:
    """A few bytes of one file of the run are others, or a part of it is missing, or it is a folder."""
    generator = np.random.default_rng(seed)
    names = ["metrics.jsonl", "evaluation.json", "config.yaml", "log.txt"]
    path = directory / names[seed % len(names)]
    data = bytearray(path.read_bytes())
    match generator.integers(5):
        case 0:
            data = data[: generator.integers(len(data))]
        case 1:
            start = int(generator.integers(len(data)))
            data[start : start + 1000] = bytes(1000)
        case 2:
            words = [b"null", b"-1", b"1e999", b"[]", b"{}", b"NaN", b'"x"', b"true", b"9" * 400]
            numbers = list(re.finditer(rb"[0-9.]+", bytes(data)))
            chosen = generator.choice(np.array(numbers, dtype=object), 20)  # type: ignore[arg-type]
            for match in reversed(chosen):
                data[match.start() : match.end()] = words[generator.integers(len(words))]
        case 3:
            for place in generator.integers(len(data), size=20):
                data[place] = generator.integers(256)
        case _:
            path.unlink()
            path.mkdir()
            return
    path.write_bytes(data)


@pytest.mark.slow
def test_a_run_with_any_damage_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_run(tmp_path / "whole", steps=60)
    svg = "<svg></svg>"
    for module, name in (
        (scores, "plot_capacity"),
        (scores, "plot_load_by_layer"),
        (scores, "plot_load_by_time"),
        (training, "plot_load_by_layer"),
    ):  # figures take a second each; those of the curves are drawn in a few cases
        monkeypatch.setattr(module, name, lambda *arguments: svg)
    draw = training.plot_curves
    for seed in range(200):
        monkeypatch.setattr(training, "plot_curves", draw if seed % 40 == 0 else lambda panels: svg)
        run = Path(shutil.copytree(whole, tmp_path / f"run-{seed}"))
        damage(run, seed=seed)
        page = write_report(run).read_text(encoding="utf-8")
        check_page(page)
        assert "could not be made" not in page, seed
        shutil.rmtree(run)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{" * 5000, "a: &a [*a]", "!!python/object/apply:os.getcwd []", "\0"]
)
def test_a_config_that_cannot_be_read_costs_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    check_page(page)
    assert "config.yaml does not fit this version" in page


def test_folders_and_links_in_the_place_of_files_cost_no_report(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "evaluation.json", "config.yaml"):
        (tmp_path / name).mkdir()
    (tmp_path / "log.txt").symlink_to("log.txt")
    (tmp_path / "samples").write_text("no folder", encoding="utf-8")
    (tmp_path / "checkpoints").symlink_to("none")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    check_page(page)
    assert "No samples yet" in page and "could not be made" not in page
