import json
import logging
import math
from pathlib import Path
from random import Random

import pytest

from diffmoe_scale.telemetry.metrics import MetricsWriter, read_metrics
from tests.telemetry.full_disk import disk_limit


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


def test_a_last_line_without_its_end_is_kept_if_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\r\n{"step": 2}')
    write_steps(path, [3], resume_step=2)
    assert read_steps(path) == [1, 2, 3] and path.read_bytes().count(b"\n") == 3


def damage(lines: list[bytes], random: Random) -> tuple[bytes, set[int]]:
    """A file with damage in some lines, and the steps of the others."""
    good, parts = set(), []
    for step, line in enumerate(lines, start=1):
        match random.randrange(8):
            case 0:
                parts.append(line[: random.randrange(len(line))] + b"\n")
            case 1:
                parts.append(b"\0" * random.randrange(1, 50) + b"\n")
            case 2:
                parts.append(bytes(random.choices([0, 128, 255, 237], k=9)) + b"\n")
            case 3:
                wrong = [b"[" * 5000, b"true", b'{"step": true}', b'{"step": 1.5}', b"{}", b"9" * 5000]
                parts.append(random.choice(wrong) + b"\n")
            case _:
                parts.append(line + b"\n")
                good.add(step)
    tails = [b"", b"\0" * 4096, lines[0][:-1], b"\xff\xfe"]
    return b"".join(parts) + random.choice(tails), good


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_damage_costs_only_the_damaged_lines(tmp_path: Path, seed: int) -> None:
    random, path = Random(seed), tmp_path / "metrics.jsonl"
    write_steps(path, list(range(1, 13)))
    data, good = damage(path.read_bytes().splitlines(), random)
    path.write_bytes(data)
    assert set(read_steps(path)) == good
    resume_step = random.randrange(13)
    write_steps(path, [resume_step + 1], resume_step=resume_step)
    assert read_steps(path) == [*sorted(step for step in good if step <= resume_step), resume_step + 1]


def test_no_file_is_no_line(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    write_steps(Path("/dev/full"), [1, 2, 3])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text


@pytest.mark.parametrize("room", [0, 1, 100, 5000])
def test_what_a_full_disk_did_not_take_is_there_when_it_takes_it(tmp_path: Path, room: int) -> None:
    """Many times what a file's buffer holds."""
    path, values = tmp_path / "metrics.jsonl", {"moe/load/1": [0.125] * 500}
    with MetricsWriter(path, resume_step=0) as writer:
        writer.write(1, 1, values)
        with disk_limit(path.stat().st_size + room):
            for step in range(2, 30):
                writer.write(step, step, values)
            assert path.stat().st_size == len(path.read_bytes().splitlines()[0]) + 1 + room
        writer.write(30, 30, values)
        assert read_steps(path) == list(range(1, 31))
