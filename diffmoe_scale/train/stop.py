"""Signals that ask a run to end, and the exit codes that answer them."""

import signal
from types import FrameType, TracebackType
from typing import Self

REQUEUE = 75
"""sysexits.h's EX_TEMPFAIL: nothing is wrong, start again later."""
INTERRUPTED = 130

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """The run ends because a signal asked for it. Not an Exception: what is caught around training must not
    swallow it."""

    def __init__(self, reason: str, *, is_interrupt: bool) -> None:
        super().__init__(reason)
        self.exit_code = INTERRUPTED if is_interrupt else REQUEUE


class StopSignals:
    """Inside, a signal of SIGNALS is noted and ends nothing; a second SIGINT raises Stopped. For the main
    thread."""

    def __init__(self) -> None:
        self.is_requested = self.is_interrupt = False

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # When this rank has stopped in good order, the launcher may send more while another is a little
        # behind.
        for signum, handler in self._before.items() if not isinstance(error, Stopped) else ():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.is_interrupt:
            stop_at_once(signum, frame)
        self.is_requested = True
        self.is_interrupt = self.is_interrupt or signum == signal.SIGINT


def stop_at_once(signum: int, frame: FrameType | None) -> None:
    """A handler for the time in which there is nothing to save."""
    raise Stopped(signal.Signals(signum).name, is_interrupt=signum == signal.SIGINT)
