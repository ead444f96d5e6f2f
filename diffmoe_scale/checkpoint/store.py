"""Checkpoints: `step_00001000/` folders that are complete or ignored, in torch.distributed.checkpoint's
format.

Every tensor is stored flat under `family/name`, experts by their global index, and each rank writes the
slices that it owns: what was saved by one layout of ranks is read by any other. `manifest.json` is written
last and makes it complete. A thread copies to host memory and writes; before training changes anything it
waits until all is copied.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self  # gathered Python objects

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from diffmoe_scale.checkpoint.agreement import agree, share_of
from diffmoe_scale.checkpoint.files import HostCopies, Reader, Writer, find_problem, first_reason, global_view
from diffmoe_scale.checkpoint.folders import make_unfinished, name_finished, record_saved, remove_older
from diffmoe_scale.checkpoint.manifest import (
    METADATA,
    MOST_SHOWN,
    Manifest,
    StoredFile,
    check_model,
    checkpoint_folders,
    describe_file,
    find_damage,
    package_versions,
    read_manifest,
    write_manifest,
)
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import is_peer_failure
from diffmoe_scale.parallel.slice import Slice

logger = logging.getLogger(__name__)

RETRY_S = 30.0


class CheckpointStore:
    """The checkpoints of a run; a context manager that waits for the last save.

    Every method that is collective is so over `group`, a gloo group of all ranks which nobody else may use:
    the thread that writes speaks over it while training goes on."""

    def __init__(self, folder: Path, config: CheckpointConfig, *, group: dist.ProcessGroup) -> None:
        self.folder, self.config, self.group = folder, config, group
        self.is_main = group.rank() == 0
        self._copies = HostCopies()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copied: Future[dict[str, Slice]] | None = None
        self._under_way: Future[bool] | None = None
        self.is_waiting = False  # for the second try of a save, on this rank
        self._damaged: set[Path] = set()  # found so; they do not count as kept

    def save(self, state: Mapping[str, Slice], manifest: Manifest) -> None:
        """Begin to copy this rank's slices to host memory, and then to write them; `state` may not change
        before `wait_for_copy` has returned. Collective.

        The folder gets its name only when all is on disk; then those that the config does not keep are
        removed. A failure removes what was written, leaves older checkpoints as they are, is logged at
        once and tried again once. One save at a time: waits for the one before, and raises as `finish` does.
        """
        self.finish()
        self._copied = self._thread.submit(self._copies.prepare(state))
        self._under_way = self._thread.submit(self._write, self._copied, manifest)

    def wait_for_copy(self) -> None:
        """Wait until the `state` of the save under way may change. Raises: what stopped the copy."""
        copied, self._copied = self._copied, None
        if copied is not None:
            copied.result()

    def finish(self) -> bool:
        """Wait for the save under way; True if it is complete or none was. Collective. Raises: RuntimeError
        if it failed and `checkpoint.on_write_error` is `stop`."""
        under_way, self._under_way = self._under_way, None
        return under_way is None or under_way.result()

    @property
    def has_failed(self) -> bool:
        """The save of this rank has failed for good, so that `finish` raises."""
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def is_idle(self) -> bool:
        """True if no save of this rank is being written."""
        return self._under_way is None or self._under_way.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_lost = isinstance(error, Exception) and is_peer_failure(error)
        try:
            if not is_lost:  # else the thread may wait for that rank for hours: the process ends without it
                self.finish()
        except RuntimeError:
            if error is None:  # else what ended the run is the news; the failed save is in the log
                raise
        finally:
            self._thread.shutdown(wait=not is_lost)

    def _write(self, copied: Future[dict[str, Slice]], manifest: Manifest) -> bool:
        """A save that failed is tried once more after RETRY_S: a disk may be full or away for a moment."""
        state = copied.result()
        is_written = self._try_to_write(state, manifest, is_last=False)
        if not is_written:
            self.is_waiting = True
            time.sleep(RETRY_S)
            self.is_waiting = False
            is_written = self._try_to_write(state, manifest, is_last=True)
        return is_written

    def _try_to_write(self, state: Mapping[str, Slice], manifest: Manifest, *, is_last: bool) -> bool:
        final = self.folder / f"step_{manifest.step:08d}"
        unfinished = final.with_suffix(".tmp")
        try:
            agree(self.group, lambda: make_unfinished(unfinished) if self.is_main else None)
            writer = Writer(unfinished, sync_files=True)
            dcp.save(
                {name: global_view(piece) for name, piece in state.items()},
                storage_writer=writer,
                process_group=self.group,
            )
            self._complete(unfinished, final, state, manifest)
        except (CheckpointException, OSError, RuntimeError) as error:  # the first is a BaseException
            if isinstance(error, Exception) and is_peer_failure(error):
                raise  # no matter of disks, and the end of training whatever the config says
            reason = first_reason(error)
            if self.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            message = (
                f"checkpoint {final} was not written: {reason}; older checkpoints are untouched; "
                f"free space in {self.folder} or change its disk"
            )
            choice = self.config.on_write_error
            again = f"it is tried once more in {RETRY_S:g} s, while training goes on"
            goes = "stops" if choice == "stop" else "goes on"
            end = f"training {goes} (checkpoint.on_write_error={choice})"
            logger.error("%s; %s", message, end if is_last else again)
            if is_last and choice == "stop":
                raise RunError(message) from error
            return False
        self._damaged.discard(final)
        if self.is_main:
            remove_older(self.folder, self.config, damaged=self._damaged)
        return True

    def newest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint whose files are as they were written; None if there is none at all.
        Collective.

        Waits for the save under way. Raises: RuntimeError if there are checkpoints and each is damaged.
        """
        self.finish()
        candidates = agree(
            self.group,
            lambda: [str(path) for path in checkpoint_folders(self.folder)] if self.is_main else [],
        )[0]
        for candidate in map(Path, reversed(candidates)):
            found = agree(self.group, lambda: self._check_share(candidate))  # noqa: B023 # called at once
            # Each rank says what is wrong with the manifest.
            problems = [*dict.fromkeys(problem for of_rank in found for problem in of_rank)]
            if not problems:
                return candidate, read_manifest(candidate)
            self._damaged.add(candidate)
            logger.warning(
                "checkpoint %s is damaged and not used: %s", candidate, "; ".join(problems[:MOST_SHOWN])
            )
        if candidates:
            raise RunError(
                f"every checkpoint in {self.folder} is damaged (the log names the files); "
                "restore one, or choose another run.directory"
            )
        return None

    def load(self, checkpoint: Path, state: Mapping[str, Slice], *, settings: Mapping[str, Any]) -> Manifest:
        """Fill the slices of `state` in place. Collective.

        Raises: ValueError naming tensors and settings if the checkpoint is of another model, RuntimeError if
        it cannot be read.
        """
        manifest = read_manifest(checkpoint)
        shapes: dict[str, list[int]] = {}
        for found in agree(self.group, lambda: {name: list(piece.shape) for name, piece in state.items()}):
            shapes |= found
        check_model(checkpoint, manifest, shapes, settings)
        (problem, *_) = agree(self.group, lambda: find_problem(checkpoint / METADATA) if self.is_main else "")
        if problem:
            raise RunError(problem)
        views = {name: global_view(piece) for name, piece in state.items()}
        try:
            dcp.load(views, storage_reader=Reader(checkpoint), process_group=self.group)
        except CheckpointException as error:  # a BaseException, which nobody above expects
            raise RunError(f"checkpoint {checkpoint} cannot be read: {first_reason(error)}") from error
        return manifest

    def _complete(
        self, unfinished: Path, final: Path, state: Mapping[str, Slice], manifest: Manifest
    ) -> None:
        """Check sums of all files, the manifest, and the rename that makes the checkpoint exist."""
        files: dict[str, StoredFile] = {}
        shapes: dict[str, list[int]] = {}
        # The main rank's listing is shared: a rank that does not see a file of it fails here, not at a
        # resume.
        found = agree(self.group, lambda: [*unfinished.iterdir()] if self.is_main else [])[0]
        own_shapes = {name: list(piece.shape) for name, piece in state.items()}
        share = share_of(self.group, [path.name for path in found])
        shares = agree(
            self.group, lambda: ({name: describe_file(unfinished / name) for name in share}, own_shapes)
        )
        for found_files, found_shapes in shares:
            files |= found_files
            shapes |= found_shapes
        files, shapes = dict(sorted(files.items())), dict(sorted(shapes.items()))
        full = replace(manifest, files=files, shapes=shapes, versions=package_versions())

        def publish() -> None:
            if not self.is_main:
                return
            write_manifest(unfinished, full)
            name_finished(unfinished, final)
            record_saved(RunDirectory(self.folder.parent).saved, full.step)

        agree(self.group, publish)

    def _check_share(self, checkpoint: Path) -> list[str]:
        """What is wrong with the manifest and with this rank's share of the files."""
        try:
            manifest = read_manifest(checkpoint)
        except ValueError as error:
            return [str(error)]
        return find_damage(checkpoint, manifest, share_of(self.group, list(manifest.files)))
