import logging
from typing import Any  # gradients by name

import pytest
import torch

from diffmoe_scale.model.compilation import CompilationLog, compile_blocks, compiled_graphs
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.routing import Selection
from tests.model.models import CHANNELS, SIZE, disturb, make_transformer


def step(transformer: DiffusionTransformer, size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(3, CHANNELS, size, size, generator=generator)
    transformer.zero_grad()
    prediction = transformer(
        x_BCHW,
        torch.full((3,), 0.5),
        Condition(labels_B=torch.tensor([0, 1, 2])),
        Selection("train", step=size),
    )
    loss = prediction.value_BCHW.square().mean() + sum(
        routing.aux_losses["predictor"] for routing in prediction.routings
    )
    loss.backward()
    return {"loss": loss.detach()} | {
        name: parameter.grad for name, parameter in transformer.named_parameters()
    }


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_gives_the_losses_and_gradients_of_the_plain_one(backend: str) -> None:
    torch.compiler.reset()
    plain, compiled = make_transformer("class"), make_transformer("class")
    disturb(plain)
    disturb(compiled)
    names = [name for name, _ in compiled.named_parameters()]
    pieces = compile_blocks(compiled, backend=backend)
    # A dense block; attention and predictor of one with experts.
    assert [type(piece).__name__ for piece in pieces] == 2 * ["Block", "SelfAttention", "CapacityPredictor"]
    for size in (SIZE, 2 * SIZE):
        expected, got = step(plain, size), step(compiled, size)
        for name, value in expected.items():
            # Elementwise work in another order.
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert [name for name, _ in compiled.named_parameters()] == names
    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] > 0 and not torch._dynamo.utils.counters["graph_break"]


def test_a_third_shape_compiles_nothing_and_the_log_says_what_the_others_did(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.compiler.reset()
    transformer = make_transformer("class")
    log = CompilationLog()
    compile_blocks(transformer, backend="aot_eager")
    caplog.set_level(logging.INFO)
    caplog.clear()
    counts = []
    for number, size in enumerate((SIZE, 2 * SIZE, 3 * SIZE, SIZE), start=1):
        before = compiled_graphs()
        step(transformer, size)
        log.add_step(number)
        counts.append(compiled_graphs() - before)
    # A dense block, attention and predictor of one with experts: equal blocks share theirs.
    assert counts[0] == 3 and counts[1] <= 3 and counts[2:] == [0, 0], counts
    steps = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert steps == [1, 2]
