"""Signals, and a file, that ask a run to end."""

import signal
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self  # Any: what pickle calls

from diffmoe_scale.cli.command import INTERRUPTED, TRY_AGAIN

if TYPE_CHECKING:  # torch takes seconds, and `pretrain --help` reads this file
    import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: a terminal was closed."""


class Stopped(BaseException):
    """The run ends because a signal asked for it. Not an Exception: what is caught around training must not
    swallow it."""

    def __init__(self, reason: str, *, is_interrupt: bool) -> None:
        super().__init__(reason)
        self.exit_code = INTERRUPTED if is_interrupt else TRY_AGAIN

    def __reduce__(self) -> tuple[Any, ...]:
        """torch.distributed.checkpoint sends what ended one rank to the others."""
        return partial(Stopped, is_interrupt=self.exit_code == INTERRUPTED), self.args


class StopSignals:
    """Inside, a signal of SIGNALS is noted and ends nothing; a second SIGINT raises Stopped. For the main
    thread."""

    def __init__(self) -> None:
        self.is_requested = self.is_interrupt = False
        """A signal came to some rank, as of the last `agree`."""
        self.source = "a signal"
        """What asked for the end, as of the last `agree`."""
        self._is_noted = self._is_interrupt_noted = self._is_file_noted = False

    def note_file(self) -> None:
        """As if a signal had come to this rank, but RUN/stop asks for the end."""
        self._is_noted = self._is_file_noted = True

    def agree(self, group: "dist.ProcessGroup", *also: bool) -> list[bool]:
        """Learn whether a signal came to any rank. Returns whether each of `also` is true on any. Collective
        over `group`, which is on gloo."""
        import torch
        import torch.distributed as dist

        flags = [self._is_noted, self._is_interrupt_noted, self._is_file_noted, *also]
        noted = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(noted, group=group)
        self.is_requested, self.is_interrupt, is_file, *answers = (count > 0 for count in noted.tolist())
        self.source = "the file `stop` in its folder" if is_file else "a signal"
        return answers

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in heeded_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # When this rank has stopped in good order, the launcher may send more while another is a little
        # behind.
        for signum, handler in self._before.items() if not isinstance(error, Stopped) else ():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._is_interrupt_noted:
            stop_at_once(signum, frame)
        self._is_noted = True
        self._is_interrupt_noted = self._is_interrupt_noted or signum == signal.SIGINT


def heeded_signals() -> list[signal.Signals]:
    """Those of SIGNALS that ask for the end: not SIGHUP where `nohup` has it ignored."""
    is_deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signum for signum in SIGNALS if not (is_deaf and signum == signal.SIGHUP)]


def end_on_signals() -> None:
    """For the time in which there is nothing to save."""
    for signum in heeded_signals():
        signal.signal(signum, stop_at_once)


def stop_at_once(signum: int, frame: FrameType | None) -> None:
    """A handler of signals."""
    raise Stopped(signal.Signals(signum).name, is_interrupt=signum == signal.SIGINT)
