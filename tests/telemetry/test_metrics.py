import json
import logging
import math
from pathlib import Path

import pytest

from diffmoe_scale.telemetry.metrics import MetricsWriter, read_metrics


def write_steps(path: Path, steps: list[int], *, resume_step: int = 0) -> None:
    with MetricsWriter(path, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, 10 * step, {"loss/diffusion": step / 2})


def read_steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path, resume_step=0) as writer:
        writer.write(20, 640, {"loss/diffusion": 0.5, "moe/load/1": [1.0, 2.0]})
        (record,) = read_metrics(path)
    assert record.pop("time") > 1e9
    assert record == {"step": 20, "samples": 640, "loss/diffusion": 0.5, "moe/load/1": [1.0, 2.0]}


def test_numbers_that_json_lacks_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, resume_step=0) as writer:
        writer.write(1, 1, {"a": math.inf, "b": [-math.inf, 1.0], "c": math.nan})
    json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    (record,) = read_metrics(path)
    assert record["a"] == math.inf and record["b"] == [-math.inf, 1.0] and math.isnan(record["c"])


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2, 3, 4])
    write_steps(path, [3, 4, 5], resume_step=2)
    assert read_steps(path) == [1, 2, 3, 4, 5] and list(tmp_path.iterdir()) == [path]


def test_a_run_from_the_start_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2, 3])
    write_steps(path, [1])
    assert read_steps(path) == [1]


def test_a_line_torn_by_a_kill_is_left_out_and_replaced_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3, "sam')
    assert read_steps(path) == [1, 2] and not caplog.records
    write_steps(path, [3], resume_step=2)
    assert read_steps(path) == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    assert read_steps(path) == [1, 3]
    assert f"{path} line 2 is no JSON object with a step" in caplog.text


def test_no_file_is_no_line(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    write_steps(Path("/dev/full"), [1, 2, 3])
    assert [record.levelno for record in caplog.records] == [
        logging.WARNING
    ] and "No space left" in caplog.text
