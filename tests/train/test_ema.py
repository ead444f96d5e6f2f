from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.ema import WeightAverage
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.resume import resume
from tests.ranks import run_on_ranks
from tests.train.runs import (
    RankRun,
    Run,
    assemble,
    copy_state,
    engine_step,
    predict_once,
    tiny_config,
    tiny_pipeline,
)

STEPS = 5


def weights(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in (7, 12)]


def test_average_is_the_decayed_sum_of_the_weights() -> None:
    masters = weights(0)
    average = WeightAverage(masters, decay=0.9, has_warmup=False)
    expected = [master.double() for master in masters]
    for step in range(1, 6):
        for master, value in zip(masters, weights(step), strict=True):
            master.copy_(value)
        average.update(step)
        expected = [
            0.9 * before + 0.1 * master.double() for before, master in zip(expected, masters, strict=True)
        ]
    for got, wanted in zip(average.averages, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)  # roundings of fp32


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (2, 3 / 12), (100, 0.9)])
def test_decay_rises_to_its_final_value_under_warm_up(step: int, decay: float) -> None:
    assert WeightAverage([], decay=0.9, has_warmup=True).decay(step) == decay


def test_two_swaps_restore_every_bit() -> None:
    masters = weights(0)
    average = WeightAverage(masters, decay=0.9, has_warmup=False)
    for master, value in zip(masters, weights(1), strict=True):
        master.copy_(value)
    average.swap()
    assert all(map(torch.equal, masters, weights(0))) and all(map(torch.equal, average.averages, weights(1)))
    average.swap()
    assert all(map(torch.equal, masters, weights(1))) and all(map(torch.equal, average.averages, weights(0)))


def follow_averages(context: ParallelContext) -> dict[str, object]:
    """Train, and average this rank's whole weights beside the engine's sharded average."""
    config = tiny_config(
        ["parallel.expert_parallel=2", "run.micro_batch=2", "optimizer.learning_rate=1.0e-2"]
    )
    pipeline = tiny_pipeline(config, context.megatron_groups)
    parameters = pipeline.denoiser.canonical_parameters()
    averages = {name: parameter.detach().clone().double() for name, parameter in parameters.items()}
    engine = Engine(pipeline.denoiser, config, context)
    for step in range(1, STEPS + 1):
        engine_step(step, engine, pipeline, config, context, Run())
        decay = min(config.optimizer.ema_decay, (1 + step) / (10 + step))
        averages = {
            name: decay * average + (1 - decay) * parameters[name].detach().double()
            for name, average in averages.items()
        }
    errors = []
    for name, (values, start, _) in copy_state(engine).items():
        if name.startswith("ema/"):
            errors.append(
                np.abs(
                    values
                    - averages[name.removeprefix("ema/")].flatten()[start : start + values.size].numpy()
                ).max()
            )

    before, state = predict_once(pipeline, config), copy_state(engine)
    with engine.averaged_weights():
        inside = predict_once(pipeline, config)
        held = max(float((parameter - averages[name]).abs().max()) for name, parameter in parameters.items())
    after, restored = predict_once(pipeline, config), copy_state(engine)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(averages[name])
    expected = predict_once(pipeline, config)
    return {
        "error of a slice": max(errors),
        "error of a weight inside": held,
        "moved": np.abs(before - inside).max(),
        "error of a prediction inside": np.abs(expected - inside).max(),
        "is restored": np.array_equal(before, after)
        and all(np.array_equal(state[name][0], restored[name][0]) for name in state),
    }


def test_sharded_average_is_that_of_whole_weights_and_what_the_denoiser_computes_with_for_a_while() -> None:
    for answer in run_on_ranks(follow_averages, 4, expert_parallel=2):
        assert answer["error of a slice"] < 1e-6  # roundings of fp32
        assert answer["error of a weight inside"] < 1e-6
        # The averages lag by steps of 1e-2, which shows.
        assert answer["moved"] > 1e-2 and answer["error of a prediction inside"] < 1e-4
        assert answer["is restored"]


TWO = "optimizer.ema2_decay=0.15"
"""Less than the warm-up allows from the first step on, so that it is the decay of every step."""


def go_on_with(context: ParallelContext, folder: Path, settings: list[str], last: int) -> RankRun:
    """The run in a folder goes on with these settings to step `last`, and is saved."""
    config = tiny_config([*settings, "run.micro_batch=2", "optimizer.learning_rate=1.0e-2"])
    directory, run = RunDirectory(folder), Run()
    pipeline = tiny_pipeline(config, context.megatron_groups)
    engine = Engine(pipeline.denoiser, config, context)
    with CheckpointStore(directory.checkpoints, config.checkpoint, group=context.checkpoint_group) as store:
        start = resume(store, engine, config, directory, frozen={})
        arrived = copy_state(engine)
        for step in range(start.step + 1, last + 1):
            engine_step(step, engine, pipeline, config, context, run)
        store.save(engine.state(), Manifest(step=last, samples=0, optimizer_steps=last))
    return RankRun(run, copy_state(engine) | {f"arrived/{key}": value for key, value in arrived.items()})


def test_second_average_has_its_own_decay_and_changes_nothing_else(tmp_path: Path) -> None:
    one, two, second = (
        assemble([run_on_ranks(go_on_with, 1, tmp_path / str(number), settings, STEPS)[0]]).state
        for number, settings in enumerate([[], [TWO], ["optimizer.ema_decay=0.15"]])
    )
    names = [name for name in two if name.startswith("ema2/")]
    assert names and one.keys() == {name for name in two if "ema2/" not in name}
    for name in one:
        np.testing.assert_array_equal(two[name], one[name], err_msg=name)
    for name in names:
        np.testing.assert_array_equal(two[name], second[name.replace("ema2/", "ema/")], err_msg=name)
        assert (two[name] != two[name.replace("ema2/", "ema/")]).any()


def test_second_average_begins_with_the_first_in_an_older_run_and_is_left_again(tmp_path: Path) -> None:
    settings: list[list[str]] = [[], [TWO], [TWO], []]
    first, added, kept, left = (
        assemble([run_on_ranks(go_on_with, 1, tmp_path, some, 2 + number)[0]]).state
        for number, some in enumerate(settings)
    )
    for name in (name for name in added if name.startswith("ema2/")):
        np.testing.assert_array_equal(added[f"arrived/{name}"], first[name.replace("ema2/", "ema/")])
        np.testing.assert_array_equal(kept[f"arrived/{name}"], added[name])
    assert not any("ema2/" in name for name in left)
    for name in (name for name in left if name.startswith("ema/")):
        np.testing.assert_array_equal(left[f"arrived/{name}"], kept[name])
