from functools import cache
from typing import Any  # options of numpy's comparisons

import numpy as np
import pytest
import torch

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train import engine as engine_module
from diffmoe_scale.train.engine import Engine, accumulation_steps
from diffmoe_scale.train.zero import ZeroEngine
from tests.moe.layers import alone
from tests.ranks import run_on_ranks
from tests.train.runs import (
    Run,
    assemble,
    compute_loss,
    copy_state,
    engine_step,
    rank_batches,
    tiny_batch,
    tiny_config,
    tiny_pipeline,
    train_alone,
    train_on_rank,
)

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


@pytest.mark.parametrize("stage", [1, 2])
def test_bf16_gradients_of_micro_batches_and_ranks_are_added_up_in_fp32(stage: int) -> None:
    answers = run_on_ranks(train_on_rank, 2, [[*SMALL, f"parallel.zero_stage={stage}"]], 1)
    got = assemble([answer[0] for answer in answers]).state
    for name, gradient in sum_in_fp32().items():
        # The first moment after one step is a tenth of the gradient. A sum of 16 in bf16 is off by 1e-2.
        error = np.linalg.norm(got[f"exp_avg/{name}"] / 0.1 - gradient) / max(
            float(np.linalg.norm(gradient)), 1e-9
        )
        assert error < 1e-4, (name, error)


def count_bytes(context: ParallelContext, settings: list[list[str]]) -> list[dict[str, int]]:
    """Bytes of this rank's fp32 state by dense and expert parts, as allocated, padding included."""
    answers = []
    for choice in settings:
        config = tiny_config([*choice, f"parallel.expert_parallel={context.expert_parallel}"])
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine = Engine(pipeline.denoiser, config, context)
        engine.state()
        held = {"expert": 0, "dense": 0}
        for number, group in enumerate(engine.zero.groups):
            moments = engine.zero.moments(number).values()
            tensors = [engine.zero.masters[number], engine.average.averages[number], *moments]
            held["expert" if group.get("moe") else "dense"] += sum(
                tensor.untyped_storage().nbytes() for tensor in tensors
            )
        answers.append(held)
    return answers


@pytest.mark.parametrize("expert_parallel", [1, 2, 4])
def test_a_rank_holds_its_share_of_masters_moments_and_averages(expert_parallel: int) -> None:
    parameters = tiny_pipeline(tiny_config([]), alone()).denoiser.canonical_parameters()
    expert = sum(parameter.numel() for name, parameter in parameters.items() if ".experts." in name)
    whole = {"expert": expert, "dense": sum(parameter.numel() for parameter in parameters.values()) - expert}
    for answers in run_on_ranks(
        count_bytes,
        4,
        [["parallel.zero_stage=1"], ["parallel.zero_stage=2"]],
        expert_parallel=expert_parallel,
    ):
        for held in answers:
            if expert_parallel == 1:
                held = {"all": held["expert"] + held["dense"]}
            for part, size in held.items():
                # Four numbers of four bytes a parameter, over four ranks. Slices of a group are of one size,
                # with few elements of padding.
                assert 0 <= size - 16 * (sum(whole.values()) if part == "all" else whole[part]) / 4 < 1000, (
                    part,
                    size,
                )


def skip_a_step(context: ParallelContext, settings: list[str], first_step: int) -> dict[str, object]:
    """Two good steps with a bad one before the first or the second, and two good ones alone."""
    config = tiny_config([*settings, "parallel.expert_parallel=2", "run.micro_batch=2"])
    states, result = [], None
    for is_disturbed in (False, True):
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine = Engine(pipeline.denoiser, config, context)
        for step in (1, 2):
            if is_disturbed and step == first_step:
                before, weights = (
                    copy_state(engine),
                    [parameter.clone() for parameter in pipeline.denoiser.parameters()],
                )
                for batch in rank_batches(9, config, context):
                    loss = compute_loss(engine, pipeline, batch).total
                    engine.backward(loss * float("inf") if context.rank == 1 else loss)
                result = engine.step(1e-3)
                after = copy_state(engine)
                is_unchanged = are_equal(before, after) and all(
                    map(torch.equal, weights, pipeline.denoiser.parameters())
                )
            engine_step(step, engine, pipeline, config, context, Run())
        states.append(copy_state(engine))
        assert engine.step_count == 2
    assert result is not None
    return {
        "is_skipped": result.is_skipped,
        "norm": result.gradient_norm,
        "is_unchanged": is_unchanged,
        "goes on": are_equal(*states),
    }


def are_equal(
    some: dict[str, tuple[np.ndarray, int, tuple[int, ...]]],
    others: dict[str, tuple[np.ndarray, int, tuple[int, ...]]],
) -> bool:
    return some.keys() == others.keys() and all(
        np.array_equal(values, others[name][0]) for name, (values, *_) in some.items()
    )


def skip_in_turn(context: ParallelContext) -> list[dict[str, object]]:
    cases = [
        ([], 1),
        ([], 2),
        (["parallel.zero_stage=2"], 2),
        (["optimizer.clip_norm=0"], 2),
        (["model.precision=bf16"], 2),
    ]
    return [skip_a_step(context, settings, first_step) for settings, first_step in cases]


def test_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any() -> None:
    for answers in run_on_ranks(skip_in_turn, 2, expert_parallel=2):
        for answer in answers:
            assert answer == {"is_skipped": True, "norm": float("inf"), "is_unchanged": True, "goes on": True}


class GroupCountingAdam(torch.optim.Optimizer):
    """Adam that counts its steps by group and begins to in its first step, as apex's FusedAdam does."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody gives a closure
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state["exp_avg"].lerp_(parameter.grad, 0.1)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 0.001)
                first, second = 1 - 0.9 ** group["step"], 1 - 0.999 ** group["step"]
                parameter.sub_(
                    group["lr"] * (state["exp_avg"] / first) / ((state["exp_avg_sq"] / second).sqrt() + 1e-6)
                )


def build_group_counting(groups: list[dict[str, object]], *_: object, **__: object) -> GroupCountingAdam:
    return GroupCountingAdam(groups, {"lr": 1e-3})


def move_to_another_engine(context: ParallelContext, counts_by_group: bool) -> bool:
    """Four steps, and two steps before and two after the state was copied into a new engine: do they end
    alike?"""
    config = tiny_config(["parallel.expert_parallel=2"])
    with pytest.MonkeyPatch.context() as patch:
        if counts_by_group:
            patch.setattr(engine_module, "build_optimizer", build_group_counting)
        pipelines = [tiny_pipeline(config, context.megatron_groups) for _ in range(3)]
        whole, before, after = (Engine(pipeline.denoiser, config, context) for pipeline in pipelines)
    for step in (1, 2, 3, 4):
        engine_step(step, whole, pipelines[0], config, context, Run())
    for step in (1, 2):
        engine_step(step, before, pipelines[1], config, context, Run())
    for name, piece in after.state().items():
        piece.values.copy_(before.state()[name].values)
    after.restored(step_count=before.step_count)
    for step in (3, 4):
        engine_step(step, after, pipelines[2], config, context, Run())
    return are_equal(copy_state(whole), copy_state(after))


def move_in_turn(context: ParallelContext) -> list[bool]:
    return [move_to_another_engine(context, counts_by_group) for counts_by_group in (False, True)]


def test_new_engine_goes_on_to_the_bit_from_a_copied_state_however_the_optimizer_counts() -> None:
    assert run_on_ranks(move_in_turn, 2, expert_parallel=2) == [[True, True]] * 2


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


def test_checkpoints_of_deepspeed_itself_are_refused() -> None:
    for method in (ZeroEngine.save_checkpoint, ZeroEngine.load_checkpoint):
        with pytest.raises(RuntimeError, match="rank 0's experts only"):
            method(object.__new__(ZeroEngine), "folder")
