import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from diffmoe_scale.checkpoint import store as store_module
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from tests.checkpoint.states import (
    even_cuts,
    make_state,
    manifest,
    messages_of_the_store,
    newest_name,
    save,
    write,
)
from tests.ranks import run_on_ranks


def fail_in_turn(context: ParallelContext, folder: Path, on_write_error: str) -> list[str]:
    """One save after another, each failing elsewhere; then a good one."""
    no_space = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object, **__: object) -> None:
        raise no_space

    store_module.RETRY_S = 0.05
    answers = []
    places = [
        (0, Path, "mkdir"),
        (0, dcp.FileSystemWriter, "write_data"),
        (1, dcp.FileSystemWriter, "write_data"),
        (0, json, "dump"),
        (0, os, "rename"),
    ]
    for step, (rank, owner, name) in enumerate(places, start=20):
        with pytest.MonkeyPatch.context() as patch:
            if context.rank == rank:
                patch.setattr(owner, name, fail)
            try:
                (is_written,) = save(context, folder, [step], on_write_error=on_write_error)
                answers.append(f"written: {is_written}")
            except RuntimeError as error:
                answers.append(str(error))
        dist.barrier(group=context.checkpoint_group)
        assert sorted(path.name for path in folder.iterdir()) == ["step_00000010"], name
        dist.barrier(group=context.checkpoint_group)
    assert save(context, folder, [30]) == [True]
    return answers


def test_failure_of_one_rank_stops_all_and_leaves_older_checkpoints(tmp_path: Path) -> None:
    run_on_ranks(save, 2, tmp_path, [10])
    answers = run_on_ranks(fail_in_turn, 2, tmp_path, "stop")
    assert answers[0] == answers[1]
    for step, rank, answer in zip(range(20, 25), [0, 0, 1, 0, 0], answers[0], strict=True):
        assert answer.startswith(f"checkpoint {tmp_path}/step_{step:08d} was not written: rank {rank}: "), (
            answer
        )
        assert "No space left on device" in answer and "Traceback" not in answer
        assert answer.endswith(
            f"; older checkpoints are untouched; free space in {tmp_path} or change its disk"
        )
    assert run_on_ranks(newest_name, 1, tmp_path) == ["step_00000030"]


def test_failure_of_one_rank_is_answered_by_all_where_training_goes_on(tmp_path: Path) -> None:
    run_on_ranks(save, 2, tmp_path, [10])
    assert run_on_ranks(fail_in_turn, 2, tmp_path, "continue") == [["written: False"] * 5] * 2


def fail_behind_the_back(context: ParallelContext, folder: Path) -> list[str]:
    """Who hears of a failed save: the next one, the end of the run, and nobody when the run ends with an
    error of its own."""
    store_module.RETRY_S = 0.05
    heard = []
    state = make_state(context.rank, even_cuts(context.world_size), step=10)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "dump", fail)
        for end in ("save", "run", "error"):
            try:
                with CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group) as store:
                    store.save(state, manifest(10))
                    if end == "save":
                        store.save(state, manifest(20))
                    if end == "error":
                        raise ArithmeticError("loss")
            except (RuntimeError, ArithmeticError) as error:
                heard.append(str(error))
    return heard


def test_failed_save_stops_the_next_one_or_the_end_of_the_run_and_hides_no_other_error(
    tmp_path: Path,
) -> None:
    for heard in run_on_ranks(fail_behind_the_back, 2, tmp_path):
        assert len(heard) == 3 and heard[0] == heard[1] and heard[2] == "loss"
        assert (
            heard[0].startswith(f"checkpoint {tmp_path}/step_00000010 was not written: rank 0: ")
            and "No space left" in heard[0]
        )
    assert list(tmp_path.iterdir()) == []


def fail_once(context: ParallelContext, folder: Path) -> tuple[bool, bool, int, list[str]]:
    """A disk that is full while the first attempt is written, and has room at the second."""
    store_module.RETRY_S = 0.2
    rename, calls = os.rename, []

    def fail_first(*arguments: Any, **others: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(*arguments, **others)

    with pytest.MonkeyPatch.context() as patch, messages_of_the_store() as words:
        if context.rank == 0:
            patch.setattr(os, "rename", fail_first)
        store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
        store.save(make_state(context.rank, even_cuts(context.world_size), step=10), manifest(10))
        return store.finish(), store.has_failed, len(calls), words


def test_a_save_that_failed_is_tried_once_more_by_all_ranks(tmp_path: Path) -> None:
    main, other = run_on_ranks(fail_once, 2, tmp_path)
    assert main[:2] == other[:2] == (True, False) and main[2] >= 2
    for *_, words in (main, other):
        assert len(words) == 1
        assert words[0].endswith("; it is tried once more in 0.2 s, while training goes on")
    assert run_on_ranks(newest_name, 1, tmp_path) == ["step_00000010"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_disk(context: ParallelContext, folder: Path) -> list[str]:
    """160 KiB a checkpoint on a disk of 256."""
    store_module.RETRY_S = 0.05
    group = context.checkpoint_group
    state = {"master/w": Slice.whole(torch.ones(40 * 1024))}
    careful, careless = (
        CheckpointStore(folder, CheckpointConfig(on_write_error=choice), group=group)
        for choice in ("stop", "continue")
    )
    assert write(careful, state, 10)
    with pytest.raises(RuntimeError) as failure:
        write(careful, state, 20)
    assert not write(careless, state, 30)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000010"]
    found = careful.newest()
    assert found is not None
    return [str(failure.value), found[0].name]


def test_full_disk_ends_in_one_sentence_and_the_checkpoint_before_is_whole(small_disk: Path) -> None:
    ((message, newest),) = run_on_ranks(fill_disk, 1, small_disk)
    assert (
        "No space left on device" in message
        and "older checkpoints are untouched" in message
        and "\n" not in message
    )
    assert newest == "step_00000010"


def test_a_run_that_lost_a_rank_does_not_wait_for_the_save_that_waits_for_it(tmp_path: Path) -> None:
    """A node that is gone closes no connection, and the group of saves is patient for hours."""
    group: Any = SimpleNamespace(rank=lambda: 1)
    store, is_over = CheckpointStore(tmp_path, CheckpointConfig(), group=group), threading.Event()
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:129] Timed out")
    store._under_way = store._thread.submit(lambda: is_over.wait(20))
    began = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="Timed out"), store:
            raise lost
        assert time.monotonic() - began < 10
    finally:
        is_over.set()
