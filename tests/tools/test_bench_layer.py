import json

import pytest
import torch

from tools import bench_layer

TINY = ["--shape", "16x4x64", "--rounds", "2", "--threads", "1", "--device", "cpu"]


def test_every_contender_of_every_phase_is_in_table_and_file(tmp_path, capsys):
    output = tmp_path / "results" / "layer.json"
    assert bench_layer.main([*TINY, "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    contenders = [
        "dense",
        "scatter_loop",
        "loop",
        "grouped",
        "cheap_predictor",
        "expert_gemms",
        "gemms_and_predictor",
    ]
    assert [(row["phase"], row["contender"]) for row in result["table"]] == [
        (phase, name) for phase in ("forward", "forward+backward", "inference") for name in contenders
    ]
    assert all(row["over_dense"]["median"] == 1 for row in result["table"] if row["contender"] == "dense")
    assert result["threads"] == 1 and result["versions"]["torch"] == torch.__version__
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(result["table"]) + 1


def test_a_pool_over_several_ranks_is_measured_instead(tmp_path):
    output = tmp_path / "pool.json"
    assert bench_layer.main([*TINY, "--ranks", "2", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))["table"]
    assert row["shape"] == "16x4x64" and row["ranks"] == 2 and row["share"]["median"] > 0


def test_shapes_that_cannot_be_measured_are_an_error(capsys):
    with pytest.raises(SystemExit):
        bench_layer.main(["--shape", "16x4x6"])
    assert "16x4x6: expected a width that 8 divides" in capsys.readouterr().err
