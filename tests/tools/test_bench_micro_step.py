import json
from pathlib import Path

import pytest

from tools import bench_micro_step

SMALL = ["model.conditioning=class", "model.num_classes=10", "model.image_size=32", "model.patch_size=4"]
SMALL += ["model.width=64", "model.heads=2", "model.depth=2", "moe.num_experts=4"]
SMALL += ["run.micro_batch=2", "run.global_batch=2"]
CPU = ["--device", "cpu", "--threads", "1", "--rounds", "1"]


def test_time_memory_and_a_trace_of_a_micro_step_are_written(tmp_path: Path) -> None:
    files = ["--output", str(tmp_path / "step.json"), "--trace", str(tmp_path / "trace.json")]
    assert bench_micro_step.main([*CPU, *files, *SMALL]) == 0
    result = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    (row,) = result["table"]
    assert row["variant"] == "eager" and row["loss"] > 0 and row["over_eager"]["median"] == 1
    # 2 pictures of 8 x 8 tokens.
    assert row["tokens_per_s"] == pytest.approx(1e3 * 128 / row["ms"]["median"])
    assert result["memory"]["planned_gib"] > 0
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert any(event["name"] == "aten::_grouped_mm" for event in events)


def test_a_graph_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_micro_step.main(["--variants", "graph", *CPU, *SMALL]) == 2
    assert "--variants has graph, which needs a CUDA device" in capsys.readouterr().err
