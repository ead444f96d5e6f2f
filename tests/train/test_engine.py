from functools import cache
from typing import Any  # options of numpy's comparisons

import numpy as np
import pytest

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import accumulation_steps
from tests.ranks import run_on_ranks
from tests.train.plain_torch import train_alone
from tests.train.runs import Run, assemble, tiny_config, train_on_rank

LAYOUTS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1), (4, 4, 1), (2, 1, 2), (2, 2, 2), (4, 4, 2)]
layouts = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: "world {} expert parallel {} stage {}".format(*layout)
)
pools = pytest.mark.parametrize("pool", ["data_parallel", "rank"])
# Sums over ranks and micro-batches in another order: about one rounding in losses and norms, ten after 20
# steps in weights, which moved by 2e-2.
LOSSES: dict[str, Any] = {"rtol": 1e-6}
WEIGHTS: dict[str, Any] = {"rtol": 0, "atol": 5e-6}
MOMENTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-7}
# bf16 keeps 8 bits, and a loss is a mean over many roundings.
BF16_LOSSES: dict[str, Any] = {"rtol": 2e-3}


def pool_settings(pool: str, world_size: int) -> list[str]:
    """A pool over all ranks does not depend on how the four samples of a micro-batch are spread; a rank's own
    is one of two samples."""
    return [f"moe.pool={pool}", f"run.micro_batch={4 // world_size if pool == 'data_parallel' else 2}"]


@cache
def expected(pool: str) -> Run:
    return train_alone(pool_settings(pool, 1))


@cache
def trained(layout: tuple[int, int, int]) -> dict[str, Run]:
    world_size, expert_parallel, stage = layout
    settings = [f"parallel.expert_parallel={expert_parallel}", f"parallel.zero_stage={stage}"]
    names = {pool: [*pool_settings(pool, world_size), *settings] for pool in ("data_parallel", "rank")}
    names["offload"] = [*names["rank"], "parallel.offload_optimizer=true"]
    if world_size == 2:
        names["bf16"] = [*pool_settings("rank", world_size), *settings, "model.precision=bf16"]
    answers = run_on_ranks(train_on_rank, world_size, list(names.values()), expert_parallel=expert_parallel)
    return {name: assemble([answer[i] for answer in answers]) for i, name in enumerate(names)}


@pools
@layouts
def test_losses_and_gradient_norms_equal_plain_torch_on_one_process(
    layout: tuple[int, int, int], pool: str
) -> None:
    run = trained(layout)[pool]
    assert max(run.norms) > tiny_config([]).optimizer.clip_norm, "clipping was active"
    np.testing.assert_allclose(run.losses, expected(pool).losses, **LOSSES)
    np.testing.assert_allclose(run.norms, expected(pool).norms, **LOSSES)


@pools
@layouts
def test_every_weight_equals_plain_torch_after_twenty_steps(layout: tuple[int, int, int], pool: str) -> None:
    got, reference = trained(layout)[pool].state, expected(pool).state
    assert got.keys() == reference.keys()
    for name in reference:
        if not name.startswith("exp_avg"):
            np.testing.assert_allclose(got[name], reference[name], **WEIGHTS, err_msg=name)
            assert np.linalg.norm(got[name] - reference[name]) <= 1e-5 * np.linalg.norm(reference[name]), name


@pools
@layouts
def test_gradients_of_experts_are_those_of_one_process(layout: tuple[int, int, int], pool: str) -> None:
    # Adam's step does not show the length of a gradient; its first moment is a sum of gradients.
    got, reference = trained(layout)[pool].state, expected(pool).state
    experts = [name for name in reference if name.startswith("exp_avg/") and ".experts." in name]
    assert len(experts) == 4 * 4
    for name in experts:
        assert np.abs(reference[name]).max() > 1e-5
        np.testing.assert_allclose(got[name], reference[name], **MOMENTS, err_msg=name)


@layouts
def test_optimizer_state_in_host_memory_takes_the_same_twenty_steps(layout: tuple[int, int, int]) -> None:
    got, reference = trained(layout)["offload"], expected("rank")
    np.testing.assert_allclose(got.norms, reference.norms, **LOSSES)
    for name in reference.state:
        tolerance = MOMENTS if name.startswith("exp_avg") else WEIGHTS
        np.testing.assert_allclose(got.state[name], reference.state[name], **tolerance, err_msg=name)


@pytest.mark.parametrize("layout", [(2, 1, 1), (2, 2, 1), (2, 2, 2)])
def test_bf16_training_follows_fp32(layout: tuple[int, int, int]) -> None:
    run = trained(layout)["bf16"]
    np.testing.assert_allclose(run.losses, expected("rank").losses, **BF16_LOSSES)
    assert run.losses[-1] < run.losses[0]


def test_model_with_an_odd_number_of_parameters_trains() -> None:
    (answer,) = run_on_ranks(train_on_rank, 1, [["moe.num_experts=3", "run.micro_batch=8"]], 1)
    assert np.isfinite(answer[0].run.losses).all()


def refuse_batches(context: ParallelContext) -> str:
    with pytest.raises(ValueError) as refusal:
        config = tiny_config(["run.global_batch=12", "run.micro_batch=4"])
        accumulation_steps(config, ranks=context.dp_group.size())
    return str(refusal.value)


def test_global_batch_that_does_not_split_over_the_ranks_is_refused_with_the_right_multiple() -> None:
    expected_message = (
        "run.global_batch is 12 but 2 data-parallel ranks of run.micro_batch 4 take 8 "
        "samples at once; choose a multiple of 8"
    )
    assert run_on_ranks(refuse_batches, 2) == [expected_message] * 2
