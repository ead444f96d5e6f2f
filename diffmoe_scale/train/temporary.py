"""Temporary files of packages, in a folder that a kill does not leave behind for good."""

import contextlib
import fcntl
import getpass
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "diffmoe-"
INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """Inside, `tempfile` and child processes use a new folder, removed at the end. Those of this user's
    processes that were killed are removed first.

    megatron-core 0.16.1 imports wandb, which makes two folders, and data workers make one: of a rank that is
    killed they would stay until somebody empties the disk.
    """
    base = Path(tempfile.gettempdir())
    _remove_dead(base)
    folder, descriptor = _make(base)
    before = {name: os.environ.get(name) for name in ("TMPDIR", INDUCTOR)}, tempfile.tempdir
    # What torch compiles outlives the run: torch 2.14 keeps it in the temporary folder.
    os.environ.setdefault(INDUCTOR, str(base / f"torchinductor_{_user()}"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        variables, tempfile.tempdir = before
        for name, value in variables.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make(base: Path) -> tuple[Path, int]:
    """A folder that is locked as long as this process lives, and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(descriptor)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)  # another start took it for a dead one's


def _lock(descriptor: int) -> bool:
    """False if another process holds it, or where folders cannot be locked (NFS): none is removed there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_dead(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _user() -> str:
    """As in torch's name of its cache."""
    try:
        return re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):  # no name for the user's number, as in containers
        return f"uid_{os.getuid()}"
