import base64
import html
import html.parser
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.evaluation.results import read_evaluation
from diffmoe_scale.report import scores, training
from diffmoe_scale.report.report import write_report
from diffmoe_scale.report.scores import format_scores
from diffmoe_scale.telemetry.metrics import MetricsWriter
from diffmoe_scale.telemetry.picture_grid import save_image_grid

LAYERS, EXPERTS, TIMES = (1, 3, 5, 7), 8, 20


def make_evaluation(step: int) -> dict:
    generator = np.random.default_rng(0)
    time_T = np.linspace(1, 0, TIMES, endpoint=False)
    load_TLE = np.clip(
        generator.normal(0.95, 0.25, (1, len(LAYERS), EXPERTS))
        + 0.5 * generator.normal(0, 1, (1, len(LAYERS), EXPERTS)) * (time_T[:, None, None] - 0.5),
        0,
        5,
    )
    scores = {
        "single_object": (0.92, 0.17),
        "two_objects": (0.4, 0.04),
        "counting": (0.33, 0.0),
        "colors": (0.77, 0.03),
        "position": (0.12, 0.02),
        "color_attribution": (0.06, 0.0),
    }
    return {
        "checkpoint": "runs/demo/checkpoints/step_00002000",
        "step": step,
        "prompts_per_suite": 96,
        "sampling": {"steps": TIMES, "guidance": 3.0, "selection": "threshold"},
        "scores": {
            name: {"score": score, "shuffled": shuffled, "prompts": 96}
            for name, (score, shuffled) in scores.items()
        },
        "capacity": {
            "average": float(load_TLE.mean()),
            "times": time_T.tolist(),
            "by_time": load_TLE.mean((1, 2)).tolist(),
            "layers": list(LAYERS),
            "load_TLE": load_TLE.tolist(),
        },
    }


def write_metrics(directory: Path, *, steps: int, every: int) -> None:
    generator = np.random.default_rng(1)
    with MetricsWriter(directory / "metrics.jsonl", resume_step=0) as writer:
        for step in range(every, steps + 1, every):
            metrics: dict[str, float | list[float]] = {
                "loss/diffusion": float(0.15 + 0.8 * np.exp(-step / 300) + generator.normal(0, 0.02)),
                "loss/predictor": float(0.25 + 0.4 * np.exp(-step / 200) + generator.normal(0, 0.01)),
                "optimizer/learning_rate": 1e-3 * min(1, step / 200) * min(1, (steps - step) / (0.3 * steps)),
                "optimizer/gradient_norm": float(generator.lognormal(-1, 0.3)),
                "throughput/images_per_s": float(300 + generator.normal(0, 8)),
                "time/step_s": 0.2,
                "time/data_s": 0.005,
                "memory/peak_gib": 1.25,
                "data/bad_samples": float(step == 10 * every),
                "data/lost/broken_header": 3.0,
            }
            metrics |= {
                f"loss/by_time/{decile}": float(
                    0.1 + 0.05 * decile + np.exp(-step / 250) + generator.normal(0, 0.02)
                )
                for decile in range(10)
            }
            metrics |= {
                f"moe/threshold/{layer}": [0.3 * (1 - np.exp(-step / 150)) + 0.01 * layer] * EXPERTS
                for layer in LAYERS
            }
            metrics |= {f"moe/load/{layer}": [1.0] * EXPERTS for layer in LAYERS}
            if step == 10 * every:
                metrics |= {"data/bad/corrupt": 1.0}
            if step in (every, 2 * every):
                metrics |= {"data/note/cmyk": 1000.0}
            if step % (10 * every) == 0:
                metrics["loss/validation"] = float(0.16 + 0.8 * np.exp(-step / 300))
            writer.write(step, step * 64, metrics)


def make_run(directory: Path, *, steps: int = 400, every: int = 10) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump_config(load_config(None, [f"run.steps={steps}"])))
    write_metrics(directory, steps=steps, every=every)
    (directory / "log.txt").write_text(
        "2026-11-24 10:00:00 INFO a: fine\n"
        "2026-11-24 10:00:01 WARNING b: shard-0.tar/<17> cannot be decoded\n"
    )
    (directory / "evaluation.json").write_text(json.dumps(make_evaluation(steps)))
    samples = directory / "samples"
    samples.mkdir()
    images_BCHW = torch.nn.functional.interpolate(
        torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, size=(32, 32)
    )
    save_image_grid(
        images_BCHW,
        [f"a red circle left of square {n}" for n in range(8)],
        samples / f"step_{steps:08d}.png",
        columns=8,
    )
    save_image_grid(
        images_BCHW,
        ["three green triangles"] * 8,
        samples / "evaluation-counting.png",
        columns=8,
        passed=[True, False] * 4,
    )
    return directory


class PageChecker(html.parser.HTMLParser):
    """Open tags, and every address that the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def check_page(text: str) -> PageChecker:
    checker = PageChecker()
    checker.feed(text)
    assert checker.open_tags == []
    return checker


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> str:
    return write_report(full_run).read_text(encoding="utf-8")


def test_report_is_well_formed_and_refers_to_nothing_outside(full_page: str) -> None:
    checker = check_page(full_page)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert checker.addresses and all(address.startswith("data:image/") for address in checker.addresses)


def test_report_of_a_whole_run_misses_nothing(full_page: str) -> None:
    assert 'class="missing"' not in full_page
    for text in (
        "25,600",
        "complete",
        "evaluation-counting.png",
        "step_00000400.png",
        "0.92 \N{PLUS-MINUS SIGN} 0.03",
        "1 of 25,600 samples could not be used",
        "num_experts: 8",
    ):
        assert text in full_page


def test_report_counts_what_was_wrong_with_samples_by_kind(full_page: str) -> None:
    rows = [re.sub("<[^>]*>", "|", row) for row in full_page.split("<tr>")]
    for kind, meaning, count in (
        ("corrupt", "damaged picture (weight 0)", "1"),
        ("cmyk", "CMYK, converted (dealt with)", "2,000"),
    ):
        assert sum(f"|{kind}||{meaning}||{count}|" in row for row in rows) == 1
    # Found again at each start, not once more in each line.
    assert sum("|broken_header||found in shards when they were indexed||3|" in row for row in rows) == 1


def test_inlined_grid_is_the_file_itself(full_run: Path, full_page: str) -> None:
    inlined = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", full_page)]
    assert (full_run / "samples" / "step_00000400.png").read_bytes() in inlined


def test_report_of_an_empty_directory_names_the_commands(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text(encoding="utf-8")
    check_page(page)
    for command in (
        "launch/pretrain_t2i.sh",
        "diffmoe_scale.sample --checkpoint",
        "diffmoe_scale.evaluate --checkpoint",
    ):
        assert command in page


def test_report_shows_training_load_before_the_first_evaluation(tmp_path: Path) -> None:
    write_metrics(tmp_path, steps=20, every=10)
    assert "in training, at step 20" in write_report(tmp_path).read_text(encoding="utf-8")


def test_report_says_that_training_went_on_after_the_evaluation(tmp_path: Path) -> None:
    write_metrics(tmp_path, steps=20, every=10)
    (tmp_path / "evaluation.json").write_text(json.dumps(make_evaluation(10)))
    assert "Training has gone on to step 20" in write_report(tmp_path).read_text(encoding="utf-8")


def test_report_survives_torn_and_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"scores": {')
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "samples": 64, "time": 1.0, "loss/diffusion": "nan"}\n{"step": 2, "sam'
    )
    (tmp_path / "config.yaml").write_text("run: {speed: 3}\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.png").write_bytes(b"no picture, but small enough to be inlined as it is")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    check_page(page)
    assert "config.yaml does not fit" in page and "No evaluation yet" in page


def test_user_text_is_escaped(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "a<b>&'\"", steps=20)
    (directory / "samples" / "<img src=x onerror=1>.png").write_bytes(
        (directory / "samples" / "step_00000020.png").read_bytes()
    )
    evaluation = make_evaluation(20) | {"checkpoint": "<b>bold</b>"}
    evaluation["scores"]["<i>suite"] = {"score": 0.5, "shuffled": 0.5, "prompts": 4}
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report(directory).read_text(encoding="utf-8")
    checker = check_page(page)
    assert all(address.startswith("data:") for address in checker.addresses)
    for text in ("<img src=x", "<b>bold", "<i>suite", "a<b>", "/<17>"):
        assert text not in page


def test_dense_model_without_load_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(load_config(None, ["moe.num_experts=0"])))
    evaluation = make_evaluation(20)
    evaluation["capacity"] = {
        "average": 1.0,
        "times": evaluation["capacity"]["times"],
        "by_time": [],
        "layers": [],
        "load_TLE": [[]] * TIMES,
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert "A dense model" in write_report(tmp_path).read_text(encoding="utf-8")


def test_large_grids_become_smaller(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    noise_BCHW = torch.rand(12, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image_grid(noise_BCHW, ["noise"] * 12, tmp_path / "samples" / "large.png", columns=12)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "data:image/jpeg" in page and len(page) < (tmp_path / "samples" / "large.png").stat().st_size


def test_only_the_newest_grids_are_shown(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in range(12):
        save_image_grid(
            torch.zeros(1, 3, 8, 8), ["a"], tmp_path / "samples" / f"step_{step:08d}.png", columns=1
        )
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "step_00000011.png" in page and "step_00000003.png" not in page and "4 older grids" in page


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run directory"):
        write_report(tmp_path / "absent")


def test_scores_as_text_end_with_mean_and_capacity(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(make_evaluation(10)), encoding="utf-8")
    evaluation = read_evaluation(tmp_path / "evaluation.json")
    assert evaluation is not None
    lines = format_scores(evaluation).splitlines()
    assert lines[1].split() == ["single", "object", "0.92", "0.03", "0.17", "96"]
    assert lines[7].split()[:2] == ["mean", "0.43"] and lines[7].split()[-1] == str(6 * 96)
    assert lines[8].startswith("average inference capacity 0.9")


def test_report_of_a_long_run_is_quick(tmp_path: Path) -> None:
    record = {
        "samples": 64,
        "time": 1.0,
        "loss/diffusion": 0.5,
        "time/step_s": 0.1,
        **{f"moe/threshold/{layer}": [0.5] * 16 for layer in range(12)},
    }
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step} | record) + "\n" for step in range(1, 10_001))
    )
    started = time.monotonic()
    size = write_report(tmp_path).stat().st_size
    assert size < 4_000_000 and time.monotonic() - started < 30


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
    assert "The last 30 of 54 warnings" in page


def test_bad_and_skipped_steps_are_counted(tmp_path: Path) -> None:
    records = [
        {"step": step, "samples": step, "time": 1.0, "defence/bad_steps": 2.0, "optimizer/skipped_steps": 1.0}
        for step in range(1, 4)
    ]
    text = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "6 steps had a loss that is not finite" in page and "3 steps were skipped" in page


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
            for match in reversed(generator.choice(np.array(numbers, dtype=object), 20)):  # type: ignore[arg-type]
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
