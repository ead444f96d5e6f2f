"""Gradients that are no part of the norm: the capacity predictors'."""

from collections.abc import Sequence

import numpy as np
import pytest
from torch import Tensor

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine
from tests.ranks import run_on_ranks
from tests.train.runs import (
    RankRun,
    compute_loss,
    copy_state,
    rank_batches,
    tiny_config,
    tiny_pipeline,
    train_on_rank,
)

PREDICTORS = [
    [],
    ["moe.predictor_tokens=0.25"],
    ["moe.predictor_weight=50.0"],
    ["moe.predictor_weight=0.01", "moe.predictor_tokens=0.5"],
]
KINDS = {
    "adamw": ["parallel.zero_stage=1"],
    "stage 2": ["parallel.zero_stage=2"],
    "offload": ["parallel.offload_optimizer=true"],
    "muon": ["optimizer.kind=muon"],
}


def of_the_model(run: RankRun) -> dict[str, np.ndarray]:
    return {name: values for name, (values, *_) in run.state.items() if ".predictor." not in name}


def of_the_predictor(run: RankRun) -> list[np.ndarray]:
    return [values for name, (values, *_) in run.state.items() if ".predictor." in name]


@pytest.mark.parametrize("kind", KINDS)
def test_model_is_the_same_to_the_bit_however_its_predictors_learn(kind: str) -> None:
    settings = ["run.micro_batch=2", "parallel.expert_parallel=2", "optimizer.clip_norm=0.1", *KINDS[kind]]
    runs = [[*settings, *predictor] for predictor in PREDICTORS]
    for answers in run_on_ranks(train_on_rank, 2, runs, 4, expert_parallel=2):
        first, *others = answers
        assert min(first.run.norms) > 0.1, "clipping was active"
        assert max(np.abs(values).max() for values in of_the_predictor(first)) > 0
        for other in others:
            assert other.run.norms == first.run.norms
            assert any(map(are_different, of_the_predictor(first), of_the_predictor(other)))
            expected, got = of_the_model(first), of_the_model(other)
            assert got.keys() == expected.keys()
            for name, values in expected.items():
                assert np.array_equal(got[name], values), name


def are_different(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.array_equal(one, other)


def spoil(gradient: Tensor) -> Tensor:
    return gradient * float("inf")


def spoil_a_predictor(
    context: ParallelContext, all_settings: Sequence[list[str]]
) -> list[tuple[bool, bool, bool]]:
    """Whether a step with a bad gradient in a predictor of rank 1 is skipped and changes nothing, and whether
    the next one is skipped."""
    answers = []
    for settings in all_settings:
        config = tiny_config(["run.micro_batch=2", "parallel.expert_parallel=2", *settings])
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine = Engine(pipeline.denoiser, config, context)
        before, skipped = copy_state(engine), []
        predictor = pipeline.denoiser.moe_layers()[0].router.predictor.hidden.weight
        for is_bad in (True, False):
            handle = predictor.register_hook(spoil) if is_bad and context.rank == 1 else None
            for batch in rank_batches(1, config, context):
                engine.backward(compute_loss(engine, pipeline, batch).total)
            if handle is not None:
                handle.remove()
            skipped.append(engine.step(1e-3).is_skipped)
            if is_bad:
                now = copy_state(engine)
                is_same = all(np.array_equal(now[name][0], values) for name, (values, *_) in before.items())
        answers.append((skipped[0], is_same, skipped[1]))
    return answers


def test_bad_gradient_of_a_predictor_skips_the_step_on_all_ranks() -> None:
    settings = [*KINDS.values(), ["optimizer.clip_norm=0"], ["model.precision=bf16"]]
    for answers in run_on_ranks(spoil_a_predictor, 2, settings, expert_parallel=2):
        assert answers == [(True, True, False)] * len(settings)
