"""A run that changes its layout of ranks on the way, with optimizer state and weight average."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any  # options of numpy's comparisons

import numpy as np
import pytest

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine
from tests.ranks import run_on_ranks
from tests.train.plain_torch import train_alone
from tests.train.runs import RankRun, Run, assemble, copy_state, engine_step, tiny_config, tiny_pipeline

Layout = tuple[int, int, int]
HOME: Layout = (4, 2, 1)
OTHERS: list[Layout] = [(2, 1, 2), (4, 4, 1), (1, 1, 1)]
AWAY, BACK, END = 4, 12, 20
"""Last steps at home, away, and at home again."""
# As in test_engine.py: sums over ranks in another order.
LOSSES: dict[str, Any] = {"rtol": 1e-6}
TENSORS: dict[str, dict[str, Any]] = {"master": {"rtol": 0, "atol": 5e-6}, "ema": {"rtol": 0, "atol": 5e-6}}
MOMENTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-7}


def settings_of(layout: Layout) -> list[str]:
    """A pool over all ranks: what a step does depends on no layout."""
    world_size, expert_parallel, stage = layout
    return [
        "moe.pool=data_parallel",
        f"run.micro_batch={4 // world_size}",
        f"parallel.expert_parallel={expert_parallel}",
        f"parallel.zero_stage={stage}",
    ]


def go_on(
    context: ParallelContext, settings: list[str], parts: list[tuple[Path, int, int, Path]]
) -> list[tuple[RankRun, RankRun]]:
    """For each (source, its step, last step, target): the state as loaded, and the run to the last step,
    saved in the target."""
    config = tiny_config(settings)
    answers = []
    for source, first, last, target in parts:
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine, run = Engine(pipeline.denoiser, config, context), Run()
        if first:
            with CheckpointStore(source, config.checkpoint, group=context.checkpoint_group) as store:
                loaded = store.load(source / f"step_{first:08d}", engine.state(), settings={})
            engine.restored(step_count=loaded.optimizer_steps)
        before = RankRun(Run(), copy_state(engine))
        for step in range(first + 1, last + 1):
            engine_step(step, engine, pipeline, config, context, run)
        with CheckpointStore(target, config.checkpoint, group=context.checkpoint_group) as store:
            store.save(engine.state(), Manifest(step=last, samples=0, optimizer_steps=last))
        answers.append((before, RankRun(run, copy_state(engine))))
    return answers


def run_parts(
    layout: Layout, parts: list[tuple[Path, int, int, Path]], settings: Sequence[str] = ()
) -> list[tuple[Run, Run]]:
    world_size, expert_parallel, _ = layout
    answers = run_on_ranks(
        go_on, world_size, [*settings_of(layout), *settings], parts, expert_parallel=expert_parallel
    )
    return [
        (assemble([answer[i][0] for answer in answers]), assemble([answer[i][1] for answer in answers]))
        for i in range(len(parts))
    ]


def assert_same_bits(got: Run, expected: Run) -> None:
    assert got.state.keys() == expected.state.keys()
    for name, values in expected.state.items():
        np.testing.assert_array_equal(got.state[name], values, err_msg=name)


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, list[tuple[Run, Run]]]:
    """For each other layout the (loaded, ended) runs at home, away and at home again."""
    folder = tmp_path_factory.mktemp("elastic")
    places = {layout: folder / "world {} expert parallel {} stage {}".format(*layout) for layout in OTHERS}
    ((_, left),) = run_parts(HOME, [(folder, 0, AWAY, folder / "home")])
    away = {
        layout: run_parts(layout, [(folder / "home", AWAY, BACK, places[layout])])[0] for layout in OTHERS
    }
    back = run_parts(
        HOME, [(places[layout], BACK, END, folder / f"end {number}") for number, layout in enumerate(OTHERS)]
    )
    return {layout: [(left, left), away[layout], home] for layout, home in zip(OTHERS, back, strict=True)}


@pytest.mark.parametrize("layout", OTHERS, ids="world {0[0]} expert parallel {0[1]} stage {0[2]}".format)
def test_weights_moments_and_average_reach_another_layout_and_come_back_to_the_bit(
    journeys: dict[Layout, list[tuple[Run, Run]]], layout: Layout
) -> None:
    (_, left), (arrived, stayed), (returned, _) = journeys[layout]
    assert {name.split("/")[0] for name in left.state} == {"master", "ema", "exp_avg", "exp_avg_sq", "buffer"}
    assert_same_bits(arrived, left)
    assert_same_bits(returned, stayed)


@pytest.mark.parametrize("layout", OTHERS, ids="world {0[0]} expert parallel {0[1]} stage {0[2]}".format)
def test_run_through_another_layout_is_that_of_plain_torch_on_one_process(
    journeys: dict[Layout, list[tuple[Run, Run]]], layout: Layout
) -> None:
    expected = train_alone(settings_of((1, 1, 1)))
    np.testing.assert_allclose(
        [loss for _, run in journeys[layout] for loss in run.losses], expected.losses, **LOSSES
    )
    got = journeys[layout][-1][1].state
    for name, values in expected.state.items():
        np.testing.assert_allclose(
            got[name], values, **TENSORS.get(name.split("/")[0], MOMENTS), err_msg=name
        )
