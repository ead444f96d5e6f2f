"""The benchmark's contenders compute the same, and its figures are of the calls that it names."""

import json

import pytest
import torch

from diffmoe_scale.moe.routing import RoutingContext, Selection
from diffmoe_scale.parallel.context import ParallelContext
from tests.moe.layers import make_layer
from tests.ranks import run_on_ranks
from tools import bench_layer

WIDTH, EXPERTS, TOKENS = 16, 4, 64
TINY = ["--shape", f"{WIDTH}x{EXPERTS}x{TOKENS}", "--rounds", "2", "--threads", "1", "--device", "cpu"]


def _context(x_SD: torch.Tensor, rule: str = "train") -> RoutingContext:
    return RoutingContext(1, x_SD, torch.zeros(1, WIDTH), Selection(rule))


@pytest.mark.parametrize("rule", ["train", "threshold"])
def test_the_scatter_loop_is_the_layer(rule):
    layer, x_SD = make_layer(width=WIDTH, num_experts=EXPERTS), torch.randn(TOKENS, WIDTH)
    bench_layer.set_thresholds(layer, x_SD)
    y_SD, routing = bench_layer.scatter_loop(layer, x_SD, _context(x_SD, rule))
    expected_SD, expected = layer(x_SD, _context(x_SD, rule))
    assert torch.equal(routing.mask_SE, expected.mask_SE)
    torch.testing.assert_close(y_SD, expected_SD, rtol=1e-5, atol=1e-6)


def test_inference_is_measured_at_capacity_one_with_uneven_loads():
    layer, x_SD = make_layer(width=WIDTH, num_experts=EXPERTS), torch.randn(TOKENS, WIDTH)
    rows = bench_layer.set_thresholds(layer, x_SD)
    assert sum(rows) == TOKENS and rows[0] < TOKENS // EXPERTS < rows[-1]
    assert layer(x_SD, _context(x_SD, "threshold"))[1].mask_SE.sum(dim=0).tolist() == rows


def test_every_contender_of_every_phase_is_in_table_and_file(tmp_path, capsys):
    output = tmp_path / "results" / "layer.json"
    assert bench_layer.main([*TINY, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    contenders = ["dense", "scatter_loop", "loop", "grouped", "expert_gemms"]
    assert [(row["phase"], row["contender"]) for row in result["table"]] == [
        (phase, name) for phase in bench_layer.PHASES for name in contenders
    ]
    assert all(row["over_dense"]["median"] == 1 for row in result["table"] if row["contender"] == "dense")
    assert result["threads"] == 1 and result["versions"]["torch"] == torch.__version__
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(result["table"]) + 1


def _pool_row(context: ParallelContext) -> dict[str, object]:
    return bench_layer.bench_pool(context, (WIDTH, EXPERTS, TOKENS), rounds=3)


def test_the_selection_in_a_pool_is_measured_on_every_rank():
    for row in run_on_ranks(_pool_row, 2):
        assert row["ranks"] == 2 and row["share"]["median"] > 0


def test_shapes_that_cannot_be_measured_are_an_error(capsys):
    with pytest.raises(SystemExit):
        bench_layer.main(["--shape", "16x4x6"])
    assert "16x4x6: expected a width that 8 divides" in capsys.readouterr().err
