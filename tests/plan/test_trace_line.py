"""Micro-batches between two that were traced, against their own traces."""

import pytest

from diffmoe_scale.plan.memory import plan_memory
from diffmoe_scale.plan.trace import trace_step
from diffmoe_scale.plan.trace_line import TraceLine
from tests.plan.layouts import config_of


@pytest.mark.parametrize("checkpointing", ["none", "experts", "blocks"])
def test_memory_on_the_line_is_that_of_the_micro_batch_itself(checkpointing: str) -> None:
    def config(micro_batch: int) -> list[str]:
        batch = [f"run.micro_batch={micro_batch}", "run.global_batch=64"]
        return [*batch, f"model.activation_checkpointing={checkpointing}", "model.precision=bf16"]

    small, large = (trace_step(config_of(*config(size)), num_samples=size) for size in (1, 16))
    line = TraceLine(small, large, 1, 16)
    assert line.at(1) is small and line.at(16) is large
    for size in (2, 4, 8):
        own = config_of(*config(size))
        near = plan_memory(own, ranks=2, is_gpu=True, trace=line.at(size)).total
        assert near == pytest.approx(plan_memory(own, ranks=2, is_gpu=True).total, rel=5e-3)
