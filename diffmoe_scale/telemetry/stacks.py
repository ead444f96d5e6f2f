"""Where a rank stands that makes no step: the stacks of its threads in a file."""

import faulthandler
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

logger = logging.getLogger(__name__)

ARMS_A_WAIT = 10
"""The clock is set anew at most so often in its time: setting it makes a thread."""


class StackDump:
    """Writes the stacks of all threads to a file after `wait_s` seconds without a `beat`, once for each such
    time, and goes on. The process need not come back to Python for it: a thread of faulthandler's writes.

    Of ranks that hang together, those whose file stays empty are the ones that are stopped or dead.
    """

    def __init__(self, path: Path, *, wait_s: int) -> None:
        """`wait_s` 0 never writes. A file that cannot be written is said, and ends nothing."""
        self._path, self._wait_s = path, wait_s
        self._file: IO[bytes] | None = None
        self._armed = 0.0

    def __enter__(self) -> Self:
        if self._wait_s > 0:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb")
            except OSError as error:
                logger.warning("%s cannot be written (%s); a hang will leave no stacks", self._path, error)
        self.beat()
        return self

    def beat(self) -> None:
        """The process goes on."""
        now = time.monotonic()
        if self._file is not None and now - self._armed >= self._wait_s / ARMS_A_WAIT:
            faulthandler.dump_traceback_later(self._wait_s, file=self._file)
            self._armed = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        try:
            if self._path.stat().st_size == 0:
                self._path.unlink()
                self._path.parent.rmdir()
        except OSError:
            pass  # another rank's file is there still, or the disk is gone: nothing depends on it
