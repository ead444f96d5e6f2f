"""Files of JSON lines that are only appended to: what a killed process wrote stays, and no two write one."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self  # Any: JSON values

from diffmoe_scale.json_text import parse_json

TIME = "time"
"""Of an entry: when it was written, seconds since 1970."""


class RecordWriter:
    """Appends lines that are on the disk when `write` returns. The file is made at the first line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def write(self, entry: dict[str, Any]) -> None:
        """Raises: OSError."""
        if self._file is None:
            is_torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = self.path.open("ab")
            if is_torn:
                self._file.write(b"\n")  # a process was killed within a line
        line = json.dumps({TIME: time.time(), **entry}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def read_records(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The whole lines of the files KIND-*.jsonl of a folder; torn ones are left out. They come in the order
    of their time: what is done anew may be in the file of another rank or part than before. Raises:
    OSError."""
    found: list[tuple[float, dict[str, Any]]] = []
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                written = entry.pop(TIME, None)
                found.append((written if isinstance(written, int | float) else 0.0, entry))
    found.sort(key=lambda each: each[0])
    yield from (entry for _, entry in found)
