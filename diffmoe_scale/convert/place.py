"""A target that is complete or not there."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffmoe_scale.checkpoint.folders import sync_folder
from diffmoe_scale.cli.output import check_output

SUFFIX = ".unfinished"
SPARE_BYTES = 1 << 20


@contextmanager
def new_target(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """The path of a file or folder to make; it gets the name `target` when the block ends without an error.

    It lies in a folder beside the target, which is removed after an error; what a killed process left is
    removed by the next one with the same target.

    Raises: ValueError if the target is there or `num_bytes` do not fit on its disk; OSError.
    """
    _refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes + SPARE_BYTES:
        raise ValueError(
            f"{target} needs {num_bytes:,} bytes, but its disk has {free:,} free; free space there, or "
            "choose another disk"
        )
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=SUFFIX, dir=target.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / target.name
        _refuse_existing(target)
        sync_folder(folder)
        os.rename(folder / target.name, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def check_target(target: Path) -> None:
    """Before the work. Raises: ValueError for a target that is there, or that cannot be written."""
    _refuse_existing(target)
    check_output("TO", target)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; nothing is overwritten: choose another name, or remove it")


def _remove_leftovers(target: Path) -> None:
    """Folders that no living process holds."""
    for folder in target.parent.glob(f"{_escaped(target.name)}.*{SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
