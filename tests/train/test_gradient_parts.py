"""The gradient norm by part, against plain torch on one process."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.parts import GRADIENT_PARTS, gradient_part_of
from diffmoe_scale.train.engine import Engine
from tests.ranks import run_on_ranks
from tests.train.runs import compute_loss, rank_batches, text_settings, tiny_config, tiny_pipeline

# The loss of a step is the same for every layout where every sample is a pool.
POOL = ["moe.pool=sample", "run.micro_batch=2"]
Norms = dict[str, float]


def of_plain_torch(context: ParallelContext) -> tuple[Norms, float]:
    config = tiny_config(POOL)
    pipeline = tiny_pipeline(config, context.megatron_groups)
    batches = rank_batches(1, config, context)
    for batch in batches:
        (compute_loss(pipeline.denoiser, pipeline, batch).total / len(batches)).backward()
    squares = dict.fromkeys(GRADIENT_PARTS, 0.0)
    for name, parameter in pipeline.denoiser.named_parameters():
        if parameter.grad is not None:
            squares[gradient_part_of(name)] += float(parameter.grad.double().square().sum())
    counted = sum(square for part, square in squares.items() if part != "predictor")
    return {part: math.sqrt(square) for part, square in squares.items()}, math.sqrt(counted)


def of_engine(context: ParallelContext, all_settings: Sequence[list[str]]) -> list[tuple[list[float], float]]:
    answers = []
    for settings in all_settings:
        config = tiny_config([*POOL, *settings])
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine = Engine(pipeline.denoiser, config, context)
        for batch in rank_batches(1, config, context):
            engine.backward(compute_loss(engine, pipeline, batch).total)
        result = engine.step(1e-3, is_observed=True)
        assert result.squares_P is not None
        answers.append((result.squares_P.tolist(), result.gradient_norm))
    return answers


@pytest.fixture(scope="module")
def expected() -> tuple[Norms, float]:
    found: tuple[Norms, float] = run_on_ranks(of_plain_torch, 1)[0]
    return found


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (2, 2), (4, 2)], ids=str)
def test_norm_by_part_is_that_of_one_process_at_every_stage_with_state_in_host_memory_and_with_muon(
    layout: tuple[int, int], expected: tuple[Norms, float]
) -> None:
    world_size, expert_parallel = layout
    settings = [
        [f"parallel.zero_stage={stage}", f"parallel.expert_parallel={expert_parallel}", *more]
        for stage in (1, 2)
        for more in ([], ["parallel.offload_optimizer=true"], ["optimizer.kind=muon"])
    ]
    ranks = run_on_ranks(of_engine, world_size, settings, expert_parallel=expert_parallel)
    norms, whole = expected
    assert norms["text"] == 0 and all(norms[part] > 0 for part in GRADIENT_PARTS if part != "text")
    for number, words in enumerate(settings):
        squares_P = np.sum([answers[number][0] for answers in ranks], axis=0)
        got = dict(zip(GRADIENT_PARTS, np.sqrt(squares_P), strict=True))
        assert got == pytest.approx(norms, rel=1e-5), words
        assert whole == pytest.approx(ranks[0][number][1], rel=1e-5), words


def names_of_parts(context: ParallelContext, settings: list[str]) -> dict[str, set[str]]:
    from diffmoe_scale.encoders.text.tokenizer import train_tokenizer

    config = tiny_config([*settings, "model.attention=joint"])
    tokenizer = Path(config.run.directory) / "tokenizer.model"
    tokenizer.parent.mkdir()
    train_tokenizer(["a red circle", "a blue square"] * 50, vocabulary=300, path=tokenizer)
    denoiser = tiny_pipeline(config, context.megatron_groups, tokenizer=tokenizer).denoiser
    found: dict[str, set[str]] = {part: set() for part in GRADIENT_PARTS}
    for name, _ in denoiser.named_parameters():
        found[gradient_part_of(name)].add(name)
    return found


def test_every_parameter_has_a_part(tmp_path: Path) -> None:
    (found,) = run_on_ranks(names_of_parts, 1, text_settings(tmp_path))
    assert all(found.values())
    assert all(".router.predictor." in name for name in found["predictor"])
    assert all(".router." in name for name in found["router"])
    assert all("experts.linear_" in name for name in found["experts"])
    assert any(name.startswith("text_encoder.") for name in found["text"])
    assert not any(word in name for name in found["dense"] for word in ("router", "experts.", "text_encoder"))
