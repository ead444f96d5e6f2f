"""What the log says of each kind of end, and the exit code."""

import logging
import socket

import pytest

from diffmoe_scale.config.check import RunError
from diffmoe_scale.parallel import peers
from diffmoe_scale.train.explain import explain
from diffmoe_scale.train.stop import Stopped

HOST = socket.gethostname()
LOST_PEER = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
CONTINUES = "the same command continues from the newest complete checkpoint"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Stopped("a signal asked", is_interrupt=False), 75, f"a signal asked; {CONTINUES}"),
        (Stopped("Ctrl-C", is_interrupt=True), 130, f"Ctrl-C; {CONTINUES}"),
        (ValueError("run.steps is 0"), 2, "run.steps is 0"),
        (RunError("no picture"), 1, f"no picture; without the cause, {CONTINUES}"),
        (OSError("disk full"), 1, f"disk full; without the cause, {CONTINUES}"),
        (KeyError("x"), 1, f"KeyError: 'x'; without the cause, {CONTINUES}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_line_names_place_and_cause_and_a_traceback_stands_where_nobody_foresaw_it(
    error: BaseException, code: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert explain(error, rank=0) == code
    (record,) = caplog.records
    assert record.getMessage() == f"stopped (rank 0 on {HOST}): {line}"
    assert bool(record.exc_info) == isinstance(error, KeyError)
    assert (record.levelno == logging.WARNING) == isinstance(error, Stopped)


def test_the_log_names_another_rank_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    explain(RunError("no picture"), rank=3)
    assert caplog.records[0].getMessage().startswith(f"stopped (on {HOST}): no picture")


@pytest.mark.parametrize("lost", ["rank 1 on node2", ""])
def test_a_rank_that_was_lost_is_named_after_what_this_one_saw(
    lost: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "name_lost_ranks", lambda: lost)
    assert explain(RuntimeError(LOST_PEER), rank=0) == 1
    first, *others = [record.getMessage() for record in caplog.records]
    assert "another rank died or hung" in first and LOST_PEER in first and CONTINUES in first
    assert [line.split(";")[0] for line in others] == ([f"lost: {lost}"] if lost else [])
