import json
from pathlib import Path

import pytest

from tools import bench_metrics


def test_every_task_has_its_time_and_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--pictures",
        "60",
        "--reference",
        "40",
        "--width",
        "8",
        "--output",
        str(tmp_path / "out.json"),
    ]
    assert bench_metrics.main(command) == 0
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["task"] for row in result["table"]] == ["frechet", "kid", "neighbours"]
    assert all(row["peak_mib"] >= row["before_mib"] > 50 and row["seconds"] > 0 for row in result["table"])
    assert (result["pictures"], result["width"]) == (60, 8)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_too_few_pictures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_metrics.main(["--pictures", "3"]) == 2
    assert "--pictures is 3; expected at least 4" in capsys.readouterr().err
