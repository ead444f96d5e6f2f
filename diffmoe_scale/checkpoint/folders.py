"""Folders of checkpoints: made, named and removed; RUN/saved.json, by which lost ones are noticed."""

import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from diffmoe_scale.checkpoint.manifest import complete_checkpoints, step_of
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)


def read_saved(path: Path) -> int | None:
    """The step of the newest checkpoint that was ever complete, 0 before the first; None without the file.

    Raises: ValueError if the file is damaged; OSError if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        step = parse_json(data)["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step is {step!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); expected {{"step": N}}, N the step of the newest checkpoint; '
            "remove the file if the checkpoints are as they should be"
        ) from error
    return step


def write_saved(path: Path, step: int) -> None:
    """Raises: OSError."""
    replace_file(path, json.dumps({"step": step}).encode())


def record_saved(path: Path, step: int) -> None:
    """`write_saved` of a checkpoint that is complete, whether or not this is written down."""
    try:
        write_saved(path, step)
    except OSError as error:
        logger.warning("%s was not written: %s", path, error)


def make_unfinished(unfinished: Path) -> None:
    """Make an empty folder, and space: what killed runs left is removed. Raises: OSError."""
    for leftover in unfinished.parent.glob("step_*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)


def name_finished(unfinished: Path, final: Path) -> None:
    """Give a folder that is on disk its name; one of that name is replaced. Raises: OSError."""
    sync_folder(unfinished)
    replaced = final.with_suffix(".replaced.tmp")
    if final.exists():
        os.rename(final, replaced)
    os.rename(unfinished, final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_checkpoint(path: Path) -> None:
    """Renamed first: what a kill leaves of a removal must not look complete."""
    doomed = path.with_suffix(".tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.rename(path, doomed)
    except OSError as error:
        logger.warning("checkpoint %s was not removed: %s", path, error)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_older(folder: Path, config: CheckpointConfig, *, damaged: Collection[Path]) -> None:
    """Remove the checkpoints that the config does not keep; damaged ones neither count nor leave."""
    good = [path for path in complete_checkpoints(folder) if path not in damaged]
    for path in good[: -config.keep_last]:
        if not (config.keep_every and step_of(path) % config.keep_every == 0):
            remove_checkpoint(path)
