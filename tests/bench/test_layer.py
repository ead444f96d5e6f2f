"""The layer's contenders compute the same, and the figures are of the calls that they name."""

import pytest
import torch

from diffmoe_scale.bench.contenders import scatter_loop
from diffmoe_scale.bench.layer import (
    PHASES,
    ShapeBench,
    bench_layers,
    context_of,
    describe_buffers,
    set_thresholds,
)
from diffmoe_scale.bench.options import LayerOptions, LayerShape
from diffmoe_scale.moe.routing import RoutingContext, Rule, Selection
from tests.moe.layers import make_layer

WIDTH, EXPERTS, TOKENS = 16, 4, 64
TINY = LayerOptions(shapes=(LayerShape(WIDTH, EXPERTS, TOKENS),), rounds=2, threads=1, device="cpu")


def _context(x_SD: torch.Tensor, rule: Rule = "train") -> RoutingContext:
    return RoutingContext(1, x_SD, torch.zeros(1, WIDTH), Selection(rule))


@pytest.mark.parametrize("rule", ["train", "threshold"])
def test_the_scatter_loop_is_the_layer(rule):
    layer, x_SD = make_layer(width=WIDTH, num_experts=EXPERTS), torch.randn(TOKENS, WIDTH)
    set_thresholds(layer, x_SD)
    y_SD, routing = scatter_loop(layer, x_SD, _context(x_SD, rule))
    expected_SD, expected = layer(x_SD, _context(x_SD, rule))
    assert torch.equal(routing.mask_SE, expected.mask_SE)
    torch.testing.assert_close(y_SD, expected_SD, rtol=1e-5, atol=1e-6)


def test_inference_is_measured_at_capacity_one_with_uneven_loads():
    layer, x_SD = make_layer(width=WIDTH, num_experts=EXPERTS), torch.randn(TOKENS, WIDTH)
    rows = set_thresholds(layer, x_SD)
    assert sum(rows) == TOKENS and rows[0] < TOKENS // EXPERTS < rows[-1]
    assert layer(x_SD, _context(x_SD, "threshold"))[1].mask_SE.sum(dim=0).tolist() == rows


def test_narrow_experts_have_the_rows_and_the_width_of_the_dense_network():
    bench = ShapeBench(LayerShape(WIDTH, EXPERTS, TOKENS, 2.0), dtype="fp32", device=torch.device("cpu"))
    layer, context = bench.layers["grouped"], context_of(bench.x_SD, "forward")
    assert dict(layer.expert_parameters())["experts.0.w_in"].shape == (2 * WIDTH, WIDTH)
    assert layer(bench.x_SD, context)[1].mask_SE.sum() == 2 * TOKENS == bench.num_rows
    assert sum(bench.uneven_rows["grouped"]) == 2 * TOKENS == len(bench.gemms.x_RD)
    for phase in PHASES:
        for call in bench.calls(phase).values():
            call()


def test_every_contender_of_every_phase_has_a_row():
    table, device = bench_layers(TINY)
    contenders = ["dense", "scatter_loop", "loop", "grouped", "cheap_predictor"]
    contenders += ["expert_gemms", "gemms_and_predictor"]
    assert device == torch.device("cpu")
    assert [(row["phase"], row["contender"]) for row in table] == [
        (phase, name) for phase in PHASES for name in contenders
    ]


def test_the_buffer_of_all_tokens_for_all_experts_is_named():
    # 64 tokens x 4 experts x 16 numbers of 4 bytes are 16 KiB; 1024 times as many tokens 16 MiB.
    options = LayerOptions(shapes=(LayerShape(WIDTH, EXPERTS, 1024 * TOKENS),))
    assert describe_buffers(options) == ("16x4x65536: a buffer of tokens x experts x width would be 16 MiB")
