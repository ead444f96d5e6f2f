"""A file that lines are appended to, which loses none while the disk is full."""

from pathlib import Path


class AppendedFile:
    """What cannot be written is kept in memory and comes first the next time, so that no line is lost, torn
    or out of order. Raises: OSError where the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        # Python's own buffer keeps 8 KiB of what could not be written, and drops the rest.
        self._file = path.open("ab", buffering=0)
        self._waiting = bytearray()

    def append(self, data: bytes) -> None:
        """Raises: OSError; then `data` is kept."""
        self._waiting += data
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]

    def close(self) -> None:
        """A last try to write what is kept. Raises: OSError; then it is lost, and the file closed."""
        try:
            self.append(b"")
        finally:
            self._file.close()
