"""Runs that a signal asks to end: how they end, and that they go on as if nothing had happened."""

import os
import pickle
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.cli.command import INTERRUPTED, TRY_AGAIN
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train import run as module
from diffmoe_scale.train.reporter import Reporter
from diffmoe_scale.train.run import train
from diffmoe_scale.train.stop import SIGNALS, Stopped, StopSignals, stop_at_once
from diffmoe_scale.train.trainer import Training
from tests.ranks import run_on_ranks
from tests.train.runs import text_settings, tiny_config
from tests.train.whole_runs import SETTINGS, read_lines


@dataclass(frozen=True)
class Start:
    """One start of a run in FOLDER/name; `rank` gets `signum` in the middle of step 6."""

    name: str
    signum: signal.Signals | None = None
    rank: int = 0


STARTS = [Start("whole")]
for _name, _signum, _rank in (
    ("term", signal.SIGTERM, 0),
    ("usr1", signal.SIGUSR1, 1),
    ("usr2", signal.SIGUSR2, 1),
    ("hup", signal.SIGHUP, 0),
    ("int", signal.SIGINT, 1),
):
    STARTS += [Start(_name, _signum, _rank), Start(_name)]


def train_starts(context: ParallelContext, folder: Path, common: list[str]) -> list[tuple[int, str]]:
    """Exit code and reason of each start."""
    train_step = module.train_step

    def step_with_signal(start: Start, run: Training, reporter: Reporter) -> None:
        if run.step == 6 and start.signum is not None and start.rank == context.rank:
            os.kill(os.getpid(), start.signum)
        train_step(run, reporter)

    answers = []
    for start in STARTS:
        config = tiny_config([*common, f"run.directory={folder / start.name}"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "train_step", partial(step_with_signal, start))
            try:
                train(config, context, RunDirectory(folder / start.name))
                answers.append((0, ""))
            except Stopped as stop:
                answers.append((stop.exit_code, str(stop)))
    return answers


def test_signal_to_one_rank_ends_all_with_a_checkpoint_from_which_they_go_on_to_the_bit(
    tmp_path: Path,
) -> None:
    first, second = run_on_ranks(
        train_starts, 2, tmp_path, [*text_settings(tmp_path), *SETTINGS, "run.steps=8"]
    )
    assert first == second
    told = "a signal asked for it; step 6 is saved"
    assert first == [
        (0, ""),
        (TRY_AGAIN, told),
        (0, ""),
        (TRY_AGAIN, told),
        (0, ""),
        (TRY_AGAIN, told),
        (0, ""),
        (TRY_AGAIN, told),
        (0, ""),
        (INTERRUPTED, told),
        (0, ""),
    ]
    whole = read_lines(tmp_path / "whole")
    assert list(whole) == list(range(1, 9))
    for name in ("term", "usr1", "usr2", "hup", "int"):
        assert read_lines(tmp_path / name) == whole
        assert [path.name for path in complete_checkpoints(tmp_path / name / "checkpoints")] == [
            "step_00000006",
            "step_00000008",
        ]


@pytest.mark.parametrize("is_interrupt", [True, False])
def test_what_ends_a_rank_can_be_sent_to_another(is_interrupt: bool) -> None:
    stopped = Stopped("SIGTERM", is_interrupt=is_interrupt)
    sent = pickle.loads(pickle.dumps(stopped))
    assert str(sent) == "SIGTERM" and sent.exit_code == stopped.exit_code


def test_second_interrupt_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), StopSignals() as stop:
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), signum)
        assert stop._is_noted and stop._is_interrupt_noted
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.exit_code == INTERRUPTED
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_terminal_ends_no_run_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop._is_noted
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_before_the_first_step_ends_at_once(signum: signal.Signals) -> None:
    with pytest.raises(Stopped, match=signum.name) as stopped:
        stop_at_once(signum, None)
    assert stopped.value.exit_code == (INTERRUPTED if signum == signal.SIGINT else TRY_AGAIN)
