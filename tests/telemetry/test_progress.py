import io
import logging
import sys
import time

import pytest

from diffmoe_scale.telemetry.progress import Progress


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log lines so far, without a terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger="diffmoe_scale")
    return caplog.messages


def run(progress: Progress, steps: range, *, log_every: int = 1) -> None:
    for step in steps:
        if step % log_every == 0:
            progress.update(step, loss=0.25, images_per_s=100.0)
        else:
            progress.update(step)


def test_a_line_tells_step_loss_speed_and_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    progress = Progress(total_steps=100, start_step=0)
    clock.now_s += 20
    progress.update(10, loss=0.25, images_per_s=123.4)
    assert caplog.messages == ["step 10 of 100, loss 0.2500, 123.4 images/s, 0:03:00 left"]


def test_time_left_of_a_resumed_run_is_by_its_own_steps(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    progress = Progress(total_steps=10_000, start_step=5_000)
    clock.now_s += 10
    progress.update(5_010, loss=1.0)
    assert caplog.messages == ["step 5010 of 10000, loss 1.0000, 1:23:10 left"]


def test_a_run_gives_two_hundred_lines_and_the_first_and_last_log_step_one_each(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    run(Progress(total_steps=1999, start_step=0), range(1, 2000))
    steps = [int(message.split()[1]) for message in caplog.messages]
    assert steps == [*range(1, 2000, 10), 1999]


def test_a_slow_run_gives_a_line_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    progress = Progress(total_steps=100_000, start_step=0)
    for step in range(1, 11):
        clock.now_s += 20
        progress.update(step, loss=1.0)
    assert [int(message.split()[1]) for message in caplog.messages] == [1, 4, 7, 10]


def test_steps_between_log_steps_give_no_line_but_the_first(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    run(Progress(total_steps=10, start_step=0), range(1, 11), log_every=5)
    assert [int(message.split()[1]) for message in caplog.messages] == [1, 5, 10]


def test_the_first_step_of_a_start_is_told_though_it_has_no_figures(
    clock: Clock, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    progress = Progress(total_steps=100, start_step=40)
    clock.now_s += 3.25
    progress.update(41)
    progress.update(42)
    assert caplog.messages == ["step 41 of 100 took 3.2 s"]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    caplog.set_level(logging.INFO, logger="diffmoe_scale")
    with Progress(total_steps=50, start_step=10) as progress:
        run(progress, range(11, 51))
    assert caplog.messages == []
    last = terminal.getvalue().rstrip().rsplit("\r", 1)[-1]
    assert "50/50" in last and "loss 0.2500, 100.0 images/s" in last
