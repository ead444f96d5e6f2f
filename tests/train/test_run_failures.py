import errno
import itertools
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any  # lines of metrics.jsonl

import pytest

from diffmoe_scale import pretrain
from diffmoe_scale.checkpoint import store as store_module
from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.load import load_config
from diffmoe_scale.parallel import context as context_module
from diffmoe_scale.parallel import launcher
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train import run as module
from diffmoe_scale.train import trainer
from diffmoe_scale.train.loss import StepLoss, denoising_loss
from diffmoe_scale.train.stop import SIGNALS
from tests.encoders.autoencoder.models import tiny_model
from tests.ranks import run_on_ranks, start_ranks
from tests.train.runs import tiny_config
from tests.train.whole_runs import read_lines, train_in_turn, train_runs

complete = CheckpointStore._complete


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
        patch.setattr(store_module, "RETRY_S", 0.05)
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


def test_a_save_that_failed_for_good_ends_the_run_within_a_step(settings: list[str], tmp_path: Path) -> None:
    """Step 8 is saved while steps 9, 10, ... are trained; no other save is due before step 1000."""
    run = [*settings, "run.steps=1000", "checkpoint.every=8"]
    for (answer,) in run_on_ranks(train_on_a_full_disk, 2, run, expert_parallel=2):
        assert answer.startswith(f"checkpoint {tmp_path / 'run' / 'checkpoints' / 'step_00000008'} was not")
    assert max(read_lines(tmp_path / "run")) < 500


def test_a_run_directory_that_fails_after_the_check_is_a_wrong_setting(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "adopt_launcher_variables", lambda: 0)
    monkeypatch.setattr(pretrain, "check_places", lambda _: None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run\.directory is '.*/file', which cannot be written to"):
        pretrain.run(tiny_config([*settings, f"run.directory={tmp_path / 'file'}"]))


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

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(launcher, "adopt_launcher_variables", lambda: 0)
    monkeypatch.setattr(context_module, "initialize", lambda **_: None)
    monkeypatch.setattr(module, "train", fail)
    handlers = [(signum, signal.getsignal(signum)) for signum in SIGNALS]
    try:
        assert pretrain.run(tiny_config(settings)) == 1
    finally:
        for signum, handler in handlers:
            signal.signal(signum, handler)
    told = capsys.readouterr().err
    assert str(error) in told and ("Traceback" in told) == is_traced


def train_on_a_short_batch(context: ParallelContext, settings: list[str]) -> str:
    """Rank 1 gets a sample less in its third micro-batch."""
    latents_of = trainer.latents_of
    calls = iter(range(1000))

    def one_less(*arguments: Any) -> Any:
        latents_BCHW = latents_of(*arguments)
        return latents_BCHW[1:] if next(calls) == 2 else latents_BCHW

    with pytest.MonkeyPatch.context() as patch:
        if context.rank == 1:
            patch.setattr(trainer, "latents_of", one_less)
        return train_in_turn(context, [settings])[0]


def test_a_batch_of_another_shape_on_one_rank_is_an_error_and_no_time_out(
    settings: list[str], tmp_path: Path
) -> None:
    run = [*settings, "run.steps=40"]
    ranks, results = start_ranks(train_on_a_short_batch, 2, str(tmp_path), run, expert_parallel=2)
    try:
        rank, _, answer = results.get(timeout=200)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert rank == 1
    assert f"rank 1 on {socket.gethostname()} has a micro-batch of 1 images of 16 x 16, " in answer
    assert "; expected 2 of 16 x 16: " in answer


def fail_once_at_step_4(store: CheckpointStore, unfinished: Path, final: Path, *arguments: Any) -> None:
    if final.name == "step_00000004" and not getattr(store, "has_failed_once", False):
        setattr(store, "has_failed_once", True)  # noqa: B010 # of this test alone
        raise OSError(errno.ENOSPC, "No space left on device")
    complete(store, unfinished, final, *arguments)


def train_over_a_failed_save(context: ParallelContext, settings: list[str]) -> float:
    """The longest time between two lines of metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "RETRY_S", 5.0)
        patch.setattr(CheckpointStore, "_complete", fail_once_at_step_4)
        assert train_in_turn(context, [settings]) == [""]
    times = [line["time"] for line in read_metrics(Path(settings[-1].partition("=")[2]) / "metrics.jsonl")]
    return max(after - before for before, after in itertools.pairwise(times))


def test_training_does_not_wait_for_a_save_that_waits_to_be_tried_again(
    settings: list[str], tmp_path: Path
) -> None:
    """Saves are due at steps 4, 8, ..., 40, long before 5 s are over; only the last step waits."""
    run = [*settings, "run.steps=40", f"run.directory={tmp_path / 'run'}"]
    longest = run_on_ranks(train_over_a_failed_save, 2, run, expert_parallel=2)
    assert max(longest) < 4
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")][-1:] == [
        "step_00000040"
    ]
