"""Muon in the engine, against one matrix after the other on one process."""

from functools import cache
from pathlib import Path
from typing import Any  # options of numpy's comparisons

import numpy as np
import pytest

from tests.ranks import run_on_ranks
from tests.train.plain_muon import num_parts
from tests.train.plain_torch import train_alone
from tests.train.runs import Run, assemble, tiny_config, train_on_rank
from tests.train.test_elastic import assert_same_bits, run_parts, settings_of

STEPS = 10
MUON = ["optimizer.kind=muon", "optimizer.muon_precision=fp32", "moe.activation=swiglu"]
LAYOUTS = [
    (world, ep, stage) for world, ep in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)) for stage in (1, 2)
]
layouts = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: "world {} expert parallel {} stage {}".format(*layout)
)
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@cache
def expected() -> Run:
    return train_alone([*settings_of((1, 1, 1)), *MUON], steps=STEPS)


@cache
def trained(world_size: int, expert_parallel: int) -> list[Run]:
    """At stages 1 and 2."""
    settings = [[*settings_of((world_size, expert_parallel, stage)), *MUON] for stage in (1, 2)]
    answers = run_on_ranks(train_on_rank, world_size, settings, STEPS, expert_parallel=expert_parallel)
    return [assemble([answer[i] for answer in answers]) for i in range(2)]


@layouts
def test_ten_steps_are_those_of_a_plain_loop_on_one_process(layout: tuple[int, int, int]) -> None:
    world_size, expert_parallel, stage = layout
    got, reference = trained(world_size, expert_parallel)[stage - 1], expected()
    np.testing.assert_allclose(got.losses, reference.losses, **CLOSE)
    assert got.state.keys() == reference.state.keys()
    for name, values in reference.state.items():
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if name.startswith(("exp_avg", "momentum")) else CLOSE
        np.testing.assert_allclose(got.state[name], values, **tolerance, err_msg=name)


def test_matrices_have_one_momentum_and_the_rest_two_moments() -> None:
    config = tiny_config(MUON)
    for name in {key.partition("/")[2] for key in expected().state if key.startswith("master/")}:
        families = {key.partition("/")[0] for key in trained(4, 2)[0].state if key.endswith(f"/{name}")}
        moments = {"momentum"} if num_parts(name, config) else {"exp_avg", "exp_avg_sq"}
        assert families == {"master", "ema", *moments}, name


def test_host_memory_and_bf16_take_the_same_steps_in_their_precision() -> None:
    """State in host memory to 1e-5; bf16 weights and Newton-Schulz follow to what a loss in bf16 shows."""
    base = [*settings_of((2, 2, 2)), *MUON]
    settings = [
        [*base, "parallel.offload_optimizer=true"],
        [*base, "model.precision=bf16", "optimizer.muon_precision=bf16"],
    ]
    answers = run_on_ranks(train_on_rank, 2, settings, STEPS, expert_parallel=2)
    offloaded, rounded = (assemble([answer[i] for answer in answers]) for i in range(2))
    for name, values in expected().state.items():
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if name.startswith(("exp_avg", "momentum")) else CLOSE
        np.testing.assert_allclose(offloaded.state[name], values, **tolerance, err_msg=name)
    np.testing.assert_allclose(rounded.losses, expected().losses, rtol=5e-3)
    assert rounded.losses[-1] < rounded.losses[0]


def test_run_goes_through_another_layout_as_on_one_process(tmp_path: Path) -> None:
    home, away = (4, 2, 1), (2, 1, 2)
    ((_, left),) = run_parts(home, [(tmp_path, 0, 3, tmp_path / "home")], MUON)
    ((arrived, stayed),) = run_parts(away, [(tmp_path / "home", 3, 7, tmp_path / "away")], MUON)
    ((returned, ended),) = run_parts(home, [(tmp_path / "away", 7, STEPS, tmp_path / "end")], MUON)
    assert_same_bits(arrived, left)
    assert_same_bits(returned, stayed)
    losses = left.losses + stayed.losses + ended.losses
    np.testing.assert_allclose(losses, expected().losses, **CLOSE)
    for name, values in expected().state.items():
        np.testing.assert_allclose(ended.state[name], values, **CLOSE, err_msg=name)


def test_gradient_norm_is_of_the_gradients_and_clipping_does_not_shorten_steps() -> None:
    """The norm is AdamW's of the same weights; a step of a matrix is as long whatever its gradient's
    length."""
    first = train_alone(settings_of((1, 1, 1)) + ["moe.activation=swiglu"], steps=1).norms
    np.testing.assert_allclose(trained(1, 1)[0].norms[:1], first, rtol=1e-6)
    settings = [[*settings_of((1, 1, 1)), *MUON, f"optimizer.clip_norm={norm}"] for norm in (0, 1e-3)]
    (answers,) = run_on_ranks(train_on_rank, 1, settings, 1)
    free, clipped = (assemble([answer]).state for answer in answers)
    matrices = [name for name in free if name.startswith("momentum/")]
    for name in (name.replace("momentum/", "master/") for name in matrices):
        np.testing.assert_allclose(clipped[name], free[name], **CLOSE, err_msg=name)
    for name in matrices:
        assert np.abs(clipped[name]).max() < 0.1 * np.abs(free[name]).max()
