"""A folder for what a benchmark writes, which is removed again."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_folder(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made if it is not there; None is the machine's temporary folder.
    Raises: OSError."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        yield Path(name)
