import json
from pathlib import Path

import pytest

from tools import bench_resume


def test_every_start_is_in_text_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmoe_scale.bench.resume.STARTS", (0.0, 0.5))
    output = tmp_path / "resume.json"
    assert bench_resume.main(["--shards", "2", "--samples", "200", "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["num_samples"] == 400
    assert [start["start_at"] for start in result["starts"]] == [0.0, 0.5]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "400 samples in 2 shards" and len(lines) == 2
    assert lines[1].startswith("start at  50 % of an epoch: ")
