"""Bad data planted in runs of two ranks: what is said of it, and that the run goes on as if it had never been
there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any  # arguments that are passed on

import pytest
import torch
from torch import Tensor

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.log import setup_logging
from diffmoe_scale.train import run as module
from diffmoe_scale.train import setup, trainer
from diffmoe_scale.train.loss import StepLoss, denoising_loss
from diffmoe_scale.train.run import train
from diffmoe_scale.train.trainer import Training
from tests.ranks import run_on_ranks
from tests.train.runs import text_settings, tiny_config
from tests.train.whole_runs import SETTINGS, read_lines

GUARDED = [
    "run.steps=12",
    "defence.window=4",
    "defence.spike_z_score=1000",
    "defence.bad_steps=2",
    "defence.max_rollbacks=1",
]
NAN = float("nan")
# Numbers in the run; eight to a step. Rank 1 computes 50, 51 and 59, rank 0 computes 57.
POISONED = (51,)
TWO_STEPS = (50, 57)
# Larger pictures from step 7 on: between the checkpoint to go back to and the bad steps.
STAGES = (
    "buckets.enabled=true",
    "buckets.aspects=[1]",
    "buckets.step=4",
    "buckets.constant_tokens=false",
    "buckets.resolutions=[[1,8],[7,16]]",
)


@dataclass(frozen=True)
class Case:
    """One start of a run in FOLDER/name, with the latents of the samples `planted` multiplied by `factor`."""

    name: str
    planted: tuple[int, ...] = ()
    factor: float = 1.0
    num_left_out: int = 0
    """The data goes on so much later than where the checkpoint stands."""
    is_killed: bool = False
    """Right after the first rollback."""
    settings: tuple[str, ...] = ()


CASES = [
    Case("poisoned", POISONED, NAN),
    Case("not finite", TWO_STEPS, NAN),
    Case("spikes", TWO_STEPS, 1000.0),
    Case("killed", TWO_STEPS, NAN, is_killed=True),
    Case("killed", TWO_STEPS, NAN),
    Case("clean", settings=("run.steps=4",)),
    Case("clean", num_left_out=32),
    Case("stages", TWO_STEPS, NAN, settings=STAGES),
    Case("killed in stages", TWO_STEPS, NAN, is_killed=True, settings=STAGES),
    Case("killed in stages", TWO_STEPS, NAN, settings=STAGES),
    Case("hopeless", tuple(range(50, 200, 8)), NAN),
]


@contextmanager
def arranged(case: Case, keys: dict[int, str]) -> Iterator[None]:
    def loss(
        predict: Any,
        objective: Any,
        batch: Batch,
        latents_BCHW: Tensor,
        *rest: Any,
        **options: Any,
    ) -> StepLoss:
        is_hit_B = torch.isin(batch.indices_B, torch.tensor(case.planted, dtype=torch.int64))
        keys.update(zip(batch.indices_B.tolist(), batch.keys, strict=True))
        factor_B = torch.where(is_hit_B, case.factor, 1.0)
        return denoising_loss(
            predict, objective, batch, latents_BCHW * factor_B[:, None, None, None], *rest, **options
        )  # type: ignore[arg-type]

    def resume_later(*arguments: object, **options: object) -> Manifest:
        start = resume(*arguments, **options)  # type: ignore[arg-type]  # passed on
        return replace(start, samples=start.samples + case.num_left_out)

    def roll_back_and_die(run: Training) -> None:
        roll_back(run)
        raise RuntimeError("killed")

    resume, roll_back = setup.resume, module.roll_back
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "denoising_loss", loss)
        patch.setattr(setup, "resume", resume_later)
        if case.is_killed:
            patch.setattr(module, "roll_back", roll_back_and_die)
        yield


def train_cases(
    context: ParallelContext, folder: Path, common: list[str]
) -> tuple[list[str], dict[int, str]]:
    """What stopped each run, and the keys of the samples that this rank computed."""
    errors, keys = [], dict[int, str]()
    for case in CASES:
        config = tiny_config(
            [*common, "parallel.expert_parallel=2", f"run.directory={folder / case.name}", *case.settings]
        )
        setup_logging(folder / case.name, rank=context.rank)
        with arranged(case, keys):
            try:
                train(config, context, RunDirectory(folder / case.name))
                errors.append("")
            except RuntimeError as failure:
                errors.append(str(failure))
    return errors, keys


@dataclass(frozen=True)
class Outcome:
    folder: Path
    errors: list[str]
    keys: dict[int, str]

    def warnings(self, name: str) -> list[str]:
        """Of the guard and the run."""
        lines = (self.folder / name / "log.txt").read_text().splitlines()
        told = (" WARNING diffmoe_scale.train.guard: ", " WARNING diffmoe_scale.train.run: ")
        return [line.split(": ", 1)[1] for line in lines if any(origin in line for origin in told)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("runs")
    (errors, keys), (other_errors, other_keys) = run_on_ranks(
        train_cases, 2, folder, [*text_settings(folder), *SETTINGS, *GUARDED], expert_parallel=2
    )
    assert errors == other_errors and not keys.keys() & other_keys.keys()
    return Outcome(folder, errors, keys | other_keys)


def test_poisoned_sample_of_another_rank_is_named_and_costs_one_step(outcome: Outcome) -> None:
    lines, key = read_lines(outcome.folder / "poisoned"), outcome.keys[51]
    assert list(lines) == list(range(1, 13))
    for name in ("defence/bad_steps", "optimizer/skipped_steps"):
        assert [step for step, line in lines.items() if line[name]] == [7]
    assert outcome.warnings("poisoned") == [
        f"step 7 is not finite; samples whose own loss is not: {key}",
        f"in this run not finite: 1 step, with a loss spike: 0 steps; 0 rollbacks; samples named last: {key}",
    ]


@pytest.mark.parametrize("name", ["not finite", "spikes", "killed"])
def test_run_goes_back_on_bad_steps_and_on_as_if_their_data_had_never_been(
    outcome: Outcome, name: str
) -> None:
    # Steps 7 and 8 are bad, so that step 8 is not saved: back to step 4, and on behind sample 64, also by the
    # next start after a kill.
    lines = read_lines(outcome.folder / name)
    assert [line["samples"] for line in lines.values()] == [8, 16, 24, 32, *range(72, 136, 8)]
    assert lines == read_lines(outcome.folder / "clean")


def test_sizes_of_images_go_back_with_the_step_also_by_the_next_start(outcome: Outcome) -> None:
    lines = read_lines(outcome.folder / "stages")
    assert [line["samples"] for line in lines.values()] == [8, 16, 24, 32, *range(72, 136, 8)]
    assert lines == read_lines(outcome.folder / "killed in stages")


@pytest.mark.parametrize(
    "name, counts",
    [
        ("not finite", "not finite: 2 steps, with a loss spike: 0 steps"),
        ("spikes", "not finite: 0 steps, with a loss spike: 2 steps"),
    ],
)
def test_log_tells_which_samples_a_rollback_is_for(outcome: Outcome, name: str, counts: str) -> None:
    first, second, back, last = outcome.warnings(name)
    for message, step, number in ((first, 7, 50), (second, 8, 57)):
        named = message.rpartition(": ")[2].split(", ")
        assert (
            message.startswith(f"step {step}")
            and len(named) == 1
            and named[0].split(" (")[0] == outcome.keys[number]
        )
    assert (
        back
        == "the last 2 steps to step 8 were bad (defence.bad_steps); back to step 4, on behind sample 64: "
        "left out 32 samples"
    )
    assert last.startswith(f"in this run {counts}; 1 rollback; samples named last: ")
    assert outcome.keys[50] in last and outcome.keys[57] in last


def test_rollback_before_a_kill_is_told_at_the_end(outcome: Outcome) -> None:
    assert "1 rollback;" in outcome.warnings("killed")[-1]


def test_run_that_is_bad_again_after_its_rollbacks_ends_with_an_error(outcome: Outcome) -> None:
    *good, hopeless = outcome.errors
    assert good == ["", "", "", "killed", "", "", "", "", "killed", ""]
    assert hopeless == (
        "the last 2 steps to step 6 were bad (defence.bad_steps) and no more than 1 rollback may be "
        "(defence.max_rollbacks); "
        "lower optimizer.learning_rate, or look at the samples that the log names"
    )
