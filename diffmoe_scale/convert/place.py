"""A target that is complete or not there."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from diffmoe_scale.checkpoint.convertible import DIFFUSERS, TORCH_SUFFIXES
from diffmoe_scale.checkpoint.folders import sync_folder
from diffmoe_scale.checkpoint.manifest import MANIFEST
from diffmoe_scale.checkpoint.stored import is_export
from diffmoe_scale.cli.output import check_output
from diffmoe_scale.config.run_directory import RunDirectory

SUFFIX = ".unfinished"
OTHER_SUFFIXES = (".gguf", ".onnx", ".npz", ".npy", ".h5", ".msgpack", ".json", ".zip", ".tar", ".gz")
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


def check_target(target: Path, *, source: Path, to: str = "") -> None:
    """Before the work. Raises: ValueError for a target that is there, that cannot be written, lies in a
    checkpoint, or has the name of another kind of file than is written."""
    _refuse_existing(target)
    check_output("TO", target)
    suffix = target.suffix
    is_file = suffix.lower() in (".safetensors", *TORCH_SUFFIXES)
    if to and is_file:
        raise ValueError(f"--to {to} writes a folder, but {target} is the name of a file; leave out {suffix}")
    if suffix in OTHER_SUFFIXES or (is_file and suffix != suffix.lower()):
        raise ValueError(
            f"{target} is the name of a file that is not written here; expected NAME.safetensors, NAME.pt or "
            "the name of a folder"
        )
    for folder in target.absolute().resolve().parents:
        is_source = folder == source.absolute().resolve() and not RunDirectory(folder).config.is_file()
        if is_source or _is_checkpoint(folder):
            raise ValueError(
                f"{target} lies in {folder}, a checkpoint, which stays as it is; choose another folder"
            )


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of weights, or that of a run's checkpoints."""
    is_of_run = folder.name == "checkpoints" and RunDirectory(folder.parent).config.is_file()
    return is_of_run or is_export(folder) or (folder / DIFFUSERS).is_file() or (folder / MANIFEST).is_file()


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; nothing is overwritten: choose another name, or remove it")


def _remove_leftovers(target: Path) -> None:
    """Folders that no living process holds."""
    for folder in target.parent.glob(f"{escape(target.name)}.*{SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
