import numpy as np
import pytest
import torch

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine
from tests.moe.layers import alone
from tests.ranks import run_on_ranks
from tests.train.runs import assemble, compute_loss, tiny_batch, tiny_config, tiny_pipeline, train_on_rank


def inspect_bf16(context: ParallelContext) -> dict[str, set[torch.dtype]]:
    config = tiny_config(["model.precision=bf16", "parallel.expert_parallel=2"])
    pipeline = tiny_pipeline(config, context.megatron_groups)
    engine = Engine(pipeline.denoiser, config, context)
    found = {"parameters": {parameter.dtype for parameter in pipeline.denoiser.parameters()}}
    for name, piece in engine.state().items():
        found.setdefault(name.split("/")[0], set()).add(piece.values.dtype)
    return found


def test_bf16_weights_have_fp32_masters_moments_averages_and_thresholds() -> None:
    fp32 = {torch.float32}
    for found in run_on_ranks(inspect_bf16, 2, expert_parallel=2):
        # The int64 is the thresholds' count of updates.
        assert found == {
            "parameters": {torch.bfloat16},
            "master": fp32,
            "ema": fp32,
            "exp_avg": fp32,
            "exp_avg_sq": fp32,
            "buffer": fp32 | {torch.int64},
        }


SMALL = [
    "model.precision=bf16",
    "run.global_batch=32",
    "run.micro_batch=1",
    "moe.pool=rank",
    "optimizer.clip_norm=0",
]


def sum_in_fp32() -> dict[str, np.ndarray]:
    """Gradients of the 32 micro-batches of the first step, each in bf16, averaged in fp32 by hand."""
    config = tiny_config(SMALL)
    pipeline = tiny_pipeline(config, alone())
    parameters = pipeline.denoiser.canonical_parameters()
    sums = {name: torch.zeros(parameter.numel()) for name, parameter in parameters.items()}
    for number in range(config.run.global_batch):
        compute_loss(pipeline.denoiser, pipeline, tiny_batch(number, 1, config=config)).total.backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            sums[name] += parameter.grad.flatten().float() / config.run.global_batch
            parameter.grad = None
    return {name: values.numpy() for name, values in sums.items()}


def errors(stage: int, gradient_format: str) -> dict[str, float]:
    """Relative errors of the gradients of the first step of two ranks. The first moment after one step is a
    tenth of the gradient."""
    settings = [*SMALL, f"parallel.zero_stage={stage}", f"parallel.gradient_format={gradient_format}"]
    answers = run_on_ranks(train_on_rank, 2, [settings], 1)
    got = assemble([answer[0] for answer in answers]).state
    return {
        name: float(np.linalg.norm(got[f"exp_avg/{name}"] / 0.1 - gradient) / np.linalg.norm(gradient))
        for name, gradient in sum_in_fp32().items()
        if gradient.any()
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_bf16_gradients_of_micro_batches_and_ranks_are_added_up_in_fp32(stage: int) -> None:
    # A sum of 16 in bf16 is off by 1e-2.
    found = errors(stage, "fp32")
    assert max(found.values()) < 1e-4, found


def test_gradients_sent_in_bf16_are_rounded_once_or_twice() -> None:
    """Half a unit of 8 bits is 2e-3; micro-batches are added up in fp32."""
    found = errors(1, "bf16")
    assert all(5e-4 < error < 5e-3 for error in found.values()), found
