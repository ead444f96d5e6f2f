"""What the main rank does in a run directory before anything else: no run begins anew over an older one by
mistake."""

import contextlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.checkpoint.folders import read_saved, write_saved
from diffmoe_scale.checkpoint.manifest import checkpoint_folders, step_of
from diffmoe_scale.config.load import load_run_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.telemetry.metrics import read_metrics

logger = logging.getLogger(__name__)


def check_start(directory: RunDirectory) -> None:
    """Compare the checkpoints of a run directory with what else it holds. For the main rank, which holds the
    lock.

    A run without a checkpoint begins anew. Its earlier metrics are kept under another name; its tokenizer is
    removed, which was made from other captions or settings perhaps.

    Raises: as `find_newest`.
    """
    if find_newest(directory) is not None:
        return
    if read_saved(directory.saved) is None:  # a new directory, or one of an older version
        directory.path.mkdir(parents=True, exist_ok=True)
        write_saved(directory.saved, 0)
    keep_old_metrics(directory)
    if directory.tokenizer.exists():
        logger.info("%s is made anew: no checkpoint was saved with it", directory.tokenizer)
        directory.tokenizer.unlink()


def missing_folders(path: Path) -> list[Path]:
    """A folder and those above it that do not exist yet, the innermost first."""
    return list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))


def remove_start(directory: RunDirectory, made: Sequence[Path]) -> None:
    """Remove what a start left that failed before its first step, and those of `made` that are empty then.
    For the main rank. A directory that holds anything else stays as it is."""
    files = [directory.lock, directory.log, directory.saved, directory.tokenizer]
    files += [directory.config, directory.shards]
    if not made or not directory.path.is_dir() or not set(directory.path.iterdir()) <= set(files):
        return
    for path in files:
        path.unlink(missing_ok=True)
    for folder in made:
        with contextlib.suppress(OSError):  # another run lies there by now
            folder.rmdir()


def find_newest(directory: RunDirectory) -> int | None:
    """The step of the newest checkpoint's folder; None if the run is to begin. Changes nothing.

    Raises: ValueError if the checkpoints are gone that the directory had; OSError if it cannot be read.
    """
    folders = checkpoint_folders(directory.checkpoints)
    saved = read_saved(directory.saved)
    if not folders:
        refuse_lost_checkpoints(directory, _steps_of_older_version(directory) if saved is None else saved)
        return None
    newest = step_of(folders[-1])
    if saved is not None and newest < saved:
        logger.warning(
            "the checkpoint of step %d is gone from %s; the newest one left is of step %d",
            saved,
            directory.checkpoints,
            newest,
        )
    return newest


def refuse_lost_checkpoints(directory: RunDirectory, step: int) -> None:
    """Raise ValueError if there were checkpoints up to `step`, which is more than 0."""
    if step > 0:
        raise ValueError(
            f"run.directory {directory.path} trained to step {step} at least, but {directory.checkpoints} "
            "holds no checkpoint: put its step_* folders back or mount their disk; to begin anew, choose "
            f"another run.directory or remove {directory.path}"
        )


def keep_old_metrics(directory: RunDirectory) -> None:
    """Rename metrics.jsonl of a start that ended before its first checkpoint. Raises: OSError."""
    try:
        if directory.metrics.stat().st_size == 0:
            return
    except FileNotFoundError:
        return
    numbers = (directory.path / f"metrics_of_start_{number}.jsonl" for number in itertools.count(1))
    kept = next(path for path in numbers if not path.exists())
    directory.metrics.rename(kept)
    logger.warning(
        "%s has no checkpoint and begins anew at step 1; the metrics of the earlier start are kept in %s",
        directory.path,
        kept.name,
    )


def _steps_of_older_version(directory: RunDirectory) -> int:
    """The last step of the metrics if a checkpoint was due by then; else 0. Old versions keep no record."""
    steps = [record["step"] for record in read_metrics(directory.metrics)]
    if not steps or not directory.config.is_file():
        return 0
    every = load_run_config(directory.config).checkpoint.every
    last = int(max(steps))
    return last if 0 < every <= last else 0
