"""A file that lines are appended to, which loses none while the disk is full."""

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class AppendedFile:
    """A text file. What cannot be written is kept in memory and comes first the next time, so that no line is
    lost, torn or out of order; the first failure is said, and none is raised.

    Raises: OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._has_failed = path, False
        # Python's own buffer keeps 8 KiB of what could not be written, and drops the rest.
        self._file = path.open("ab", buffering=0)
        self._waiting = bytearray()

    def write(self, text: str) -> None:
        """Into the file with the next `flush`."""
        self._waiting += text.encode(errors="backslashreplace")

    def flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True  # first: the log may lie on the same disk
                logger.warning(
                    "%s cannot be written (%s); training goes on, its lines are kept until it can",
                    self._path,
                    error,
                )

    def close(self) -> None:
        """What is still kept after a last try is lost."""
        self.flush()
        self._file.close()
