import threading
from pathlib import Path
from typing import Any  # a state to copy

import numpy as np
import pytest
import torch

from diffmoe_scale.checkpoint.files import HostCopies
from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.train import engine as engine_module
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.zero import ZeroEngine
from tests.moe.layers import alone
from tests.ranks import run_on_ranks
from tests.train.runs import (
    Run,
    compute_loss,
    copy_state,
    engine_step,
    rank_batches,
    tiny_config,
    tiny_pipeline,
)


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
            tensors = [engine.zero.masters[number], engine.averages["ema"].averages[number], *moments]
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


def test_checkpoints_of_deepspeed_itself_are_refused() -> None:
    for method in (ZeroEngine.save_checkpoint, ZeroEngine.load_checkpoint):
        with pytest.raises(RuntimeError, match="rank 0's experts only"):
            method(object.__new__(ZeroEngine), "folder")


class LateCopy(HostCopies):
    """Copying begins when training waits for it, or after a while."""

    def __init__(self) -> None:
        super().__init__()
        self.is_awaited = threading.Event()

    def _copy(self, *arguments: Any) -> dict[str, Slice]:
        self.is_awaited.wait(0.5)
        return super()._copy(*arguments)


def save_before_change(context: ParallelContext, folder: Path) -> list[bool]:
    """Whether what a save wrote is the state at its call, where a step and where a validation follow at
    once."""
    config = tiny_config(["parallel.expert_parallel=2"])
    pipeline = tiny_pipeline(config, context.megatron_groups)
    engine = Engine(pipeline.denoiser, config, context)
    engine_step(1, engine, pipeline, config, context, Run())
    answers = []
    with CheckpointStore(folder, config.checkpoint, group=context.checkpoint_group) as store:

        def wait_for_copy() -> None:
            copies.is_awaited.set()
            store.wait_for_copy()

        engine.before_change = wait_for_copy
        for step in (2, 3):
            store._copies = copies = LateCopy()
            expected = copy_state(engine)
            store.save(engine.state(), Manifest(step=step, samples=0, optimizer_steps=step))
            if step == 2:
                engine_step(step, engine, pipeline, config, context, Run())
                answers.append(not are_equal(expected, copy_state(engine)))
            else:
                with engine.averaged_weights():
                    answers.append(not are_equal(expected, copy_state(engine)))
            store.finish()
            store.load(folder / f"step_{step:08d}", engine.state(), settings={})
            answers.append(are_equal(expected, copy_state(engine)))
    return answers


def test_step_and_validation_wait_until_a_save_has_copied_what_they_change(tmp_path: Path) -> None:
    assert run_on_ranks(save_before_change, 2, tmp_path, expert_parallel=2) == [[True] * 4] * 2
