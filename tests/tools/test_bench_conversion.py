import json
import os
from pathlib import Path

import pytest

from diffmoe_scale.bench import conversion
from tools import bench_conversion

YAML = """
model: {conditioning: class, num_classes: 5, image_size: 16, depth: 2, width: 32, heads: 2}
moe: {num_experts: 4}
"""


def test_a_copy_and_both_conversions_are_measured_and_nothing_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_in_process", lambda call, *given: call(*given))
    (tmp_path / "a.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "work").mkdir()
    command = ["--config", str(tmp_path / "a.yaml"), "--folder", str(tmp_path / "work")]
    assert bench_conversion.main([*command, "--output", str(tmp_path / "out.json"), "model.depth=4"]) == 0
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    copy, plain, compared = result["table"]
    assert [row["task"] for row in result["table"]] == ["copy", "convert", "convert and compare"]
    assert copy["of_copy"] == 1 and all(row["peak_gb"] > 0.1 for row in (plain, compared))
    # A number takes 4 bytes there and 2 here; files have headers.
    assert result["source_bytes"] > 4 * result["num_parameters"] > result["target_bytes"]
    assert result["target_bytes"] > 2 * result["num_parameters"]
    assert not os.listdir(tmp_path / "work")
    assert f"{result['num_parameters']:,} parameters" in capsys.readouterr().out


def test_sizes_of_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_conversion.main(["--config", str(tmp_path / "a.yaml"), "--copy-gib", "0"]) == 2
    assert "--copy-gib is 0.0; expected 1e-6" in capsys.readouterr().err
