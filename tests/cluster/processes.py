"""The end of all processes that a cluster of a test started, however the test ends."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

END_S = 10


def with_variable(name: str, value: str) -> list[int]:
    """The processes that have this variable in the environment they were started with."""
    wanted, found = f"{name}={value}".encode(), []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def kill_all(find: Callable[[], list[int]]) -> None:
    """Kill what `find` finds, until that is nothing: one of them may just have started another.

    Raises: AssertionError if something is left after END_S seconds.
    """
    give_up = time.monotonic() + END_S
    while left := find():
        assert time.monotonic() < give_up, f"processes {left} do not end in {END_S} s"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


@contextlib.contextmanager
def term_unwinds() -> Iterator[None]:
    """SIGTERM, as `timeout` sends it, runs the `finally` blocks, which it does not by itself, and ends all
    tests as Ctrl-C does. For the main thread."""

    def answer(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
