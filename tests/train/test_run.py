import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel import context as context_module
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.pretrain import main, run
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train import run as module
from diffmoe_scale.train import trainer
from diffmoe_scale.train.loss import StepLoss, denoising_loss
from diffmoe_scale.train.run import train
from diffmoe_scale.train.stop import SIGNALS
from tests.data.samples import color, encode, write_shard
from tests.encoders.autoencoder.models import tiny_model
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import TINY, text_settings, tiny_config

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "moe.router_init_std=1.0",
    "optimizer.warmup_steps=4",
    "optimizer.ema_decay=0.5",
    "checkpoint.every=4",
]
Lines = dict[int, dict[str, Any]]
# Sums over ranks in another order, over 20 steps.
ROUND_OFF = 2e-6
complete = CheckpointStore._complete


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    return [*text_settings(tmp_path), *SETTINGS]


def train_in_turn(context: ParallelContext, runs: Sequence[Sequence[str]]) -> list[str]:
    """One run after another; "" or what stopped it."""
    answers = []
    for settings in runs:
        config = tiny_config([*settings, f"parallel.expert_parallel={context.expert_parallel}"])
        try:
            train(config, context, RunDirectory(Path(config.run.directory)))
            answers.append("")
        except (ValueError, RuntimeError) as error:
            answers.append(str(error))
    return answers


def train_runs(layout: tuple[int, int], *runs: Sequence[str]) -> None:
    world_size, expert_parallel = layout
    for answer in run_on_ranks(train_in_turn, world_size, runs, expert_parallel=expert_parallel):
        assert answer == [""] * len(runs)


def read_lines(folder: Path) -> Lines:
    """The lines by step, without what the clock and the machine decide."""
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl")}
    return {
        step: {
            name: value
            for name, value in line.items()
            if not name.startswith(("time", "throughput", "memory"))
        }
        for step, line in lines.items()
    }


def assert_near(
    got: Lines,
    expected: Lines,
    names: Sequence[str] = ("loss/diffusion", "loss/predictor", "optimizer/gradient_norm", "moe/threshold/1"),
) -> None:
    assert got.keys() == expected.keys()
    for name in names:
        values, wanted = ([line[name] for line in lines.values()] for lines in (got, expected))
        np.testing.assert_allclose(values, wanted, rtol=ROUND_OFF, err_msg=name)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that share their experts, in one start: eight steps, the same in two parts, the same
    watched."""
    folder = tmp_path_factory.mktemp("pairs")
    common = [*text_settings(folder), *SETTINGS]
    looks = ["telemetry.validate_every=2", "telemetry.sample_every=3", "sampling.steps=2"]
    runs = []
    for precision in ("fp32", "bf16"):
        for name, steps in (("whole", 8), ("parts", 4), ("parts", 8)):
            runs.append(
                [
                    *common,
                    f"run.directory={folder / precision / name}",
                    f"run.steps={steps}",
                    f"model.precision={precision}",
                ]
            )
    train_runs(
        (2, 2), *runs, [*common, f"run.directory={folder / 'fp32' / 'watched'}", "run.steps=8", *looks]
    )
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_in_two_parts_repeats_one_without_a_break_to_the_bit(pairs: Path, precision: str) -> None:
    whole = read_lines(pairs / precision / "whole")
    assert list(whole) == list(range(1, 9)) and read_lines(pairs / precision / "parts") == whole


def test_validation_and_pictures_change_no_later_step(pairs: Path) -> None:
    watched = read_lines(pairs / "fp32" / "watched")
    losses = {
        step: line.pop("loss/validation") for step, line in watched.items() if "loss/validation" in line
    }
    assert list(losses) == [2, 4, 6, 8] and watched == read_lines(pairs / "fp32" / "whole")
    pictures = sorted(path.name for path in (pairs / "fp32" / "watched" / "samples").iterdir())
    assert pictures == ["step_00000003.png", "step_00000006.png", "step_00000008.png"]


def test_killed_run_goes_on_by_the_same_command_as_if_nothing_had_happened(
    settings: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    settings = [*settings, "run.steps=40", "optimizer.decay_fraction=0.5", "checkpoint.every=8"]
    command = [sys.executable, "-m", "diffmoe_scale.pretrain", "--config", str(file), *TINY, *settings]
    file.write_text("{}\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while len(read_metrics(metrics)) < 10 or not complete_checkpoints(tmp_path / "run" / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = max(read_lines(tmp_path / "run"))
    assert 10 <= killed_at < 40

    assert run_alone(main, command[3:]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    continued_at = int(log.split("continues from ")[1].split("(step ")[1].split(",")[0])
    assert 8 <= continued_at <= killed_at
    train_runs((1, 1), [*settings, f"run.directory={tmp_path / 'whole'}"])
    assert list(read_lines(tmp_path / "run")) == list(range(1, 41)) and read_lines(
        tmp_path / "run"
    ) == read_lines(tmp_path / "whole")

    # A third time there is nothing to do.
    assert run_alone(main, command[3:]) == 0
    assert (
        f"{tmp_path / 'run'} has its 40 steps (run.steps) already; nothing to train"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_experts_on_two_ranks_learn_as_on_one_also_when_the_layout_changes_on_the_way(
    settings: list[str], tmp_path: Path
) -> None:
    alone, spread, changing = (f"run.directory={tmp_path / name}" for name in ("alone", "spread", "changing"))
    train_runs((1, 1), [*settings, alone, "run.steps=20"])
    train_runs((2, 2), [*settings, spread, "run.steps=20"], [*settings, changing, "run.steps=6"])
    train_runs((1, 1), [*settings, changing, "run.steps=12"])
    train_runs((2, 2), [*settings, changing, "run.steps=20", "parallel.zero_stage=2"])
    assert len(read_lines(tmp_path / "alone")) == 20
    assert_near(read_lines(tmp_path / "spread"), read_lines(tmp_path / "alone"))
    assert_near(read_lines(tmp_path / "changing"), read_lines(tmp_path / "alone"))


def test_damaged_checkpoint_costs_the_steps_since_the_one_before(settings: list[str], tmp_path: Path) -> None:
    settings = [*settings, "run.steps=8"]
    train_runs((1, 1), settings)
    before = read_lines(tmp_path / "run")
    data = tmp_path / "run" / "checkpoints" / "step_00000008" / "__0_0.distcp"
    whole_size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-100])
    train_runs((1, 1), settings)
    assert read_lines(tmp_path / "run") == before and data.stat().st_size == whole_size


def test_another_global_batch_goes_on_behind_the_samples_seen(settings: list[str], tmp_path: Path) -> None:
    train_runs((1, 1), [*settings, "run.steps=4"], [*settings, "run.steps=6", "run.global_batch=4"])
    assert [line["samples"] for line in read_lines(tmp_path / "run").values()] == [8, 16, 24, 32, 36, 40]


def test_run_in_buckets_goes_on_on_other_ranks_as_one_without_a_break(
    settings: list[str], tmp_path: Path
) -> None:
    """Stopped at step 5, within the first resolution, and at 9."""
    buckets = [
        "buckets.enabled=true",
        "buckets.aspects=[0.5,1,2]",
        "buckets.step=4",
        "buckets.resolutions=[[1,8],[8,16]]",
    ]
    samples = {
        f"0_{row}": {"png": encode(Image.new("RGB", (8 + row % 3 * 8, 16), color(0, row))), "txt": b"caption"}
        for row in range(24)
    }
    write_shard(tmp_path / "shard-000.tar", samples)
    settings = [
        *settings,
        *buckets,
        "model.size_conditioning=true",
        "checkpoint.every=100",
        "telemetry.validate_every=12",
    ]
    whole, parts = (f"run.directory={tmp_path / name}" for name in ("whole", "parts"))
    train_runs((1, 1), [*settings, whole, "run.steps=12"], [*settings, parts, "run.steps=5"])
    train_runs((2, 2), [*settings, parts, "run.steps=9"])
    train_runs((1, 1), [*settings, parts, "run.steps=12"])
    lines, expected = read_lines(tmp_path / "parts"), read_lines(tmp_path / "whole")
    assert [line["samples"] for line in lines.values()] == [line["samples"] for line in expected.values()]
    # More and smaller pictures in the first stage.
    assert expected[7]["samples"] > 7 * 8 * 3 and expected[12]["samples"] - expected[11]["samples"] < 16
    assert_near(
        lines,
        {step: line for step, line in expected.items()},
        ("loss/diffusion", "loss/predictor", "optimizer/gradient_norm"),
    )


def test_run_of_another_model_is_refused_and_left_as_it_was(settings: list[str], tmp_path: Path) -> None:
    ((first, refusal),) = run_on_ranks(
        train_in_turn,
        1,
        [[*settings, "run.steps=4"], [*settings, "run.steps=4", "model.width=48", "moe.num_experts=2"]],
    )
    assert first == "" and "step_00000004 is of another model" in refusal
    assert (
        "Settings that differ: model.width was 32, is 48; moe.num_experts was 4, is 2. Restore them, or "
        "choose another run.directory" in refusal
    )
    assert load_config(tmp_path / "run" / "config.yaml").model.width == 32


def never_finite(*arguments: Any, **options: Any) -> StepLoss:
    loss = denoising_loss(*arguments, **options)
    return replace(loss, total=loss.total * float("inf"))


def train_on_infinity(context: ParallelContext, settings: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if context.rank == 1:
            patch.setattr(trainer, "denoising_loss", never_finite)
        return train_in_turn(context, [settings])[0]


def test_run_stops_when_steps_are_skipped_without_end(settings: list[str], tmp_path: Path) -> None:
    for answer in run_on_ranks(
        train_on_infinity, 2, [*settings, "run.steps=40", "defence.bad_steps=5"], expert_parallel=2
    ):
        assert answer == (
            "the last 5 steps to step 5 were bad (defence.bad_steps) and there is no checkpoint to go back "
            "to; "
            "lower optimizer.learning_rate, or look at the samples that the log names"
        )
    lines = read_lines(tmp_path / "run")
    assert list(lines) == list(range(1, 6)) and all(
        line["optimizer/skipped_steps"] == 1.0 for line in lines.values()
    )
    assert {tuple(line["moe/threshold/1"]) for line in lines.values()} == {(0.0,) * 4}


def no_space_from_step_8(store: CheckpointStore, unfinished: Path, final: Path, *arguments: Any) -> None:
    if final.name >= "step_00000008":
        raise OSError(errno.ENOSPC, "No space left on device")
    complete(store, unfinished, final, *arguments)


def train_on_a_full_disk(context: ParallelContext, settings: list[str]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "_complete", no_space_from_step_8)
        return train_in_turn(context, [settings])


def test_a_run_that_goes_on_over_a_full_disk_does_not_end_as_if_all_were_saved(
    settings: list[str], tmp_path: Path
) -> None:
    run = [*settings, "run.steps=12", "checkpoint.on_write_error=continue"]
    for (answer,) in run_on_ranks(train_on_a_full_disk, 2, run, expert_parallel=2):
        assert (
            answer
            == f"the last checkpoint was not written (the log says why), so {tmp_path / 'run'} lacks the "
            "last steps"
        )
    assert list(read_lines(tmp_path / "run"))[-1] == 12
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000004"]
    train_runs((2, 2), run)  # with room again


def test_a_run_directory_that_cannot_be_is_a_wrong_setting(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context_module, "adopt_launcher_variables", lambda: 0)
    (tmp_path / "file").touch()
    assert run(tiny_config([*settings, f"run.directory={tmp_path / 'file'}"])) == 2
    assert f"run.directory is '{tmp_path / 'file'}', which cannot be written to" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_autoencoder_of_the_same_shape(
    settings: list[str], tmp_path: Path
) -> None:
    for name, scale in (("one", 1.0), ("other", 2.0)):
        tiny_model(scaling_factor=scale).save_pretrained(tmp_path / name)
    run = [
        *settings,
        "run.steps=4",
        "autoencoder.kind=kl",
        "model.channels=16",
        "model.image_size=32",
        "model.patch_size=2",
    ]
    first, second = ([*run, f"autoencoder.path={tmp_path / name}"] for name in ("one", "other"))
    ((_, answer),) = run_on_ranks(train_in_turn, 1, [first, [*second, "run.steps=5"]], expert_parallel=1)
    assert "autoencoder.fingerprint was '" in answer and answer.count("', is '") == 1


@pytest.mark.parametrize(
    ("error", "is_traced"),
    [(RunError("all is said"), False), (OSError(28, "No space left"), False), (IndexError("7"), True)],
)
def test_only_a_failure_that_nobody_foresaw_is_told_with_its_traceback(
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    is_traced: bool,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(context_module, "adopt_launcher_variables", lambda: 0)
    monkeypatch.setattr(context_module, "initialize", lambda **_: None)
    monkeypatch.setattr(module, "train", fail)
    handlers = [(signum, signal.getsignal(signum)) for signum in SIGNALS]
    try:
        assert run(tiny_config(settings)) == 1
    finally:
        for signum, handler in handlers:
            signal.signal(signum, handler)
    told = capsys.readouterr().err
    assert str(error) in told and ("Traceback" in told) == is_traced
