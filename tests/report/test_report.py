import base64
import json
import re
import time
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.evaluation.results import read_evaluation
from diffmoe_scale.report.report import write_report
from diffmoe_scale.report.scores import format_scores
from diffmoe_scale.telemetry.picture_grid import save_image_grid
from tests.report.runs import TIMES, check_page, make_evaluation, make_run, write_metrics


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
    started = time.process_time()
    size = write_report(tmp_path).stat().st_size
    assert size < 4_000_000 and time.process_time() - started < 30
