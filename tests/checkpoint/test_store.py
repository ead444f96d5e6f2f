import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any  # answers of ranks

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from diffmoe_scale.checkpoint import store as module
from diffmoe_scale.checkpoint.manifest import Manifest, complete_checkpoints
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.checkpoint.weights import fill_tensors
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from tests.ranks import run_on_ranks

ELEMENTS = 12
SETTINGS: dict[str, dict[str, Any]] = {"moe": {"num_experts": 4, "capacity": 1.0}, "model": {"width": 32}}
Cuts = Sequence[int]
"""Where rank 0's slice begins, rank 1's, ..., and where the last ends."""


def make_state(rank: int, cuts: Cuts, *, step: int) -> dict[str, Slice]:
    """`master/w` is 0, 1, 2, ... plus 100 times the step, cut among the ranks; every rank has the whole
    buffers."""
    values = torch.arange(ELEMENTS, dtype=torch.float32) + 100 * step
    state = {
        "buffer/threshold": Slice.whole(torch.full((2,), 0.5 * step)),
        "buffer/count": Slice.whole(torch.tensor(step)),
    }
    if cuts[rank] < cuts[rank + 1]:
        state["master/w"] = Slice(values[cuts[rank] : cuts[rank + 1]].clone(), start=cuts[rank], shape=(3, 4))
    return state


def empty_state(rank: int, cuts: Cuts) -> dict[str, Slice]:
    return {
        name: Slice(torch.zeros_like(piece.values), piece.start, piece.shape)
        for name, piece in make_state(rank, cuts, step=1).items()
    }


def even_cuts(size: int) -> Cuts:
    return [ELEMENTS * rank // size for rank in range(size + 1)]


def save(
    context: ParallelContext, folder: Path, steps: Sequence[int], cuts: Cuts | None = None, **settings: Any
) -> list[bool]:
    store = CheckpointStore(folder, CheckpointConfig(**settings), group=context.checkpoint_group)
    state = partial(make_state, context.rank, cuts or even_cuts(context.world_size))
    return [write(store, state(step=step), step) for step in steps]


def write(store: CheckpointStore, state: dict[str, Slice], step: int) -> bool:
    store.save(state, manifest(step))
    return store.finish()


def manifest(step: int) -> Manifest:
    return Manifest(
        step=step, samples=8 * step, optimizer_steps=step - 1, settings=SETTINGS, layout={"world_size": 2}
    )


def load_newest(
    context: ParallelContext, folder: Path, cuts: Cuts | None = None
) -> tuple[dict[str, list[float]], list[str], int]:
    """What the newest checkpoint holds for this rank, what was logged, and its number of samples."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]  # the shortest handler
    module.logger.addHandler(handler)
    store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
    found = store.newest()
    assert found is not None
    state = empty_state(context.rank, cuts or even_cuts(context.world_size))
    loaded = store.load(found[0], state, settings=SETTINGS)
    module.logger.removeHandler(handler)
    assert loaded == found[1]
    return {name: piece.values.tolist() for name, piece in state.items()}, messages, loaded.samples


def expected_state(rank: int, cuts: Cuts, *, step: int) -> dict[str, list[float]]:
    return {name: piece.values.tolist() for name, piece in make_state(rank, cuts, step=step).items()}


@pytest.mark.parametrize(
    "before, after",
    [((0, 5, 12), (0, 12)), ((0, 12), (0, 7, 12)), ((0, 0, 12), (0, 1, 12)), ((0, 5, 12), (0, 3, 3, 11, 12))],
    ids=str,
)
def test_uneven_slices_are_read_back_by_another_layout(tmp_path: Path, before: Cuts, after: Cuts) -> None:
    run_on_ranks(save, len(before) - 1, tmp_path, [3], before)
    for rank, (state, _, _) in enumerate(run_on_ranks(load_newest, len(after) - 1, tmp_path, after)):
        assert state == expected_state(rank, after, step=3)


def test_manifest_describes_the_checkpoint_its_files_and_what_wrote_it(tmp_path: Path) -> None:
    run_on_ranks(save, 2, tmp_path, [3])
    folder = tmp_path / "step_00000003"
    tree = json.loads((folder / "manifest.json").read_text())
    assert (tree["step"], tree["samples"], tree["optimizer_steps"], tree["schema"]) == (3, 24, 2, 1)
    assert tree["settings"] == SETTINGS and tree["layout"] == {"world_size": 2}
    assert tree["shapes"] == {"master/w": [3, 4], "buffer/threshold": [2], "buffer/count": []}
    assert (
        tree["versions"].keys() == {"torch", "deepspeed", "megatron-core", "python"}
        and tree["versions"]["deepspeed"] == "0.19.8"
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert tree["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    assert any(name.endswith(".distcp") for name in files)


def newest_name(context: ParallelContext, folder: Path) -> str:
    found = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group).newest()
    return found[0].name if found else "none"


def test_folder_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert run_on_ranks(newest_name, 2, tmp_path / "missing") == ["none"] * 2


@pytest.mark.parametrize(
    "keep, kept", [({"keep_last": 2}, [40, 50]), ({"keep_last": 1, "keep_every": 20}, [20, 40, 50])], ids=str
)
def test_newest_and_regular_checkpoints_are_kept(
    tmp_path: Path, keep: dict[str, Any], kept: list[int]
) -> None:
    run_on_ranks(partial(save, **keep), 1, tmp_path, [10, 20, 30, 40, 50])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in kept]


def test_step_that_is_reached_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    run_on_ranks(save, 2, tmp_path, [3])
    (tmp_path / "step_00000003" / "manifest.json").write_text("{}")
    run_on_ranks(save, 1, tmp_path, [3])
    assert run_on_ranks(newest_name, 1, tmp_path) == ["step_00000003"]


def save_and_die(context: ParallelContext, folder: Path, place: str) -> None:
    save(context, folder, [10])

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    owner, name = {
        "data": (dcp.FileSystemWriter, "write_data"),
        "manifest": (json, "dump"),
        "rename": (os, "rename"),
    }[place]
    setattr(owner, name, die)
    save(context, folder, [20])


@pytest.mark.parametrize("place", ["data", "manifest", "rename"])
def test_save_that_was_killed_is_ignored_and_removed_by_the_next(tmp_path: Path, place: str) -> None:
    with pytest.raises(AssertionError, match="died"):
        run_on_ranks(save_and_die, 1, tmp_path, place)
    assert (tmp_path / "step_00000020.tmp").is_dir()
    assert run_on_ranks(newest_name, 1, tmp_path) == ["step_00000010"]
    run_on_ranks(save, 1, tmp_path, [30])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000030"]


def flip_bit(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def flip_a_digit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert '"samples": 160' in text
    path.write_text(text.replace('"samples": 160', '"samples": 161'), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "bit in the data": (flip_bit, "__1_0.distcp", "__1_0.distcp has another check sum"),
    "short data": (truncate, "__0_0.distcp", "__0_0.distcp has [0-9]+ bytes instead of"),
    "missing data": (Path.unlink, "__1_0.distcp", "__1_0.distcp is missing"),
    "bit in the metadata": (flip_bit, ".metadata", ".metadata has another check sum"),
    "short manifest": (truncate, "manifest.json", "manifest.json cannot be read"),
    "digit in the manifest": (flip_a_digit, "manifest.json", "manifest.json of .* has another check sum"),
    "bit in a name in the manifest": (partial(flip_bit, place=0.01), "manifest.json", "manifest.json"),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20 of two ranks; for copying."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_on_ranks(save, 2, folder, [10, 20])
    return folder


@pytest.fixture
def copy(two_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "copy"))


def load_each(
    context: ParallelContext, folders: list[Path]
) -> list[tuple[dict[str, list[float]], list[str], int]]:
    return [load_newest(context, folder) for folder in folders]


def test_damaged_files_are_named_and_the_checkpoint_before_is_used(
    two_checkpoints: Path, tmp_path: Path
) -> None:
    for name, (damage, file, _) in DAMAGES.items():
        shutil.copytree(two_checkpoints, tmp_path / name)
        damage(tmp_path / name / "step_00000020" / file)
    for rank, answers in enumerate(run_on_ranks(load_each, 2, [tmp_path / name for name in DAMAGES])):
        for (name, (_, _, pattern)), (state, messages, samples) in zip(DAMAGES.items(), answers, strict=True):
            assert state == expected_state(rank, (0, 6, 12), step=10) and samples == 80, name
            assert len(messages) == 1 and re.search(
                f"checkpoint .*step_00000020 is damaged and not used: .*{pattern}", messages[0]
            ), messages


def refuse_newest(context: ParallelContext, folder: Path) -> str:
    with pytest.raises(RuntimeError) as refusal:
        newest_name(context, folder)
    return str(refusal.value)


def go_on_with_two_kept(context: ParallelContext, folder: Path) -> list[str]:
    """From step 10, since 20 is damaged, over steps 12, 14 and 16."""
    store = CheckpointStore(folder, CheckpointConfig(keep_last=2), group=context.checkpoint_group)
    found = store.newest()
    assert found is not None and found[1].step == 10
    kept = []
    for step in (12, 14, 16):
        assert write(store, make_state(context.rank, even_cuts(context.world_size), step=step), step)
        kept.append(" ".join(sorted(path.name[-2:] for path in folder.glob("step_*"))))
    return kept


def test_damaged_checkpoints_neither_count_as_kept_nor_leave(copy: Path) -> None:
    flip_bit(copy / "step_00000020" / "__0_0.distcp")
    kept, *_ = run_on_ranks(go_on_with_two_kept, 2, copy)  # the main rank removes
    assert kept == ["10 12 20", "12 14 20", "14 16 20"]


def test_run_whose_checkpoints_are_all_damaged_stops(copy: Path) -> None:
    for path in copy.glob("*/__0_0.distcp"):
        truncate(path)
    for message in run_on_ranks(refuse_newest, 2, copy):
        assert message == (
            f"all 2 checkpoints in {copy} are damaged (the log names the files); "
            "restore one, or choose another run.directory"
        )


def fail_in_turn(context: ParallelContext, folder: Path, on_write_error: str) -> list[str]:
    """One save after another, each failing elsewhere; then a good one."""
    no_space = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object, **__: object) -> None:
        raise no_space

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


class SlowDisk:
    """Writing waits until it is let go on; what happened, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_free, self.events = threading.Event(), list[str]()
        write = dcp.FileSystemWriter.write_data

        def write_late(*arguments: Any) -> Any:
            self.events.append("begin")
            assert self.is_free.wait(60)
            answer = write(*arguments)
            self.events.append("end")
            return answer

        patch.setattr(dcp.FileSystemWriter, "write_data", write_late)


def train_while_writing(context: ParallelContext, folder: Path) -> dict[str, Any]:
    """What is seen between the beginning of a save and its end, and after it."""
    with pytest.MonkeyPatch.context() as patch:
        disk = SlowDisk(patch)
        store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
        state = make_state(context.rank, even_cuts(context.world_size), step=10)
        store.save(state, manifest(10))
        for piece in state.values():
            piece.values.zero_()
        total = torch.ones(1)
        for group in (context.dp_group, context.control_group):
            dist.all_reduce(total, group=group)
        seen = {"sum": float(total), "complete": [path.name for path in complete_checkpoints(folder)]}
        disk.is_free.set()
        store.save(make_state(context.rank, even_cuts(context.world_size), step=20), manifest(20))
        seen["events at least"] = disk.events[:2]
        assert store.finish()
    for step in (10, 20):
        state = empty_state(context.rank, even_cuts(context.world_size))
        store.load(folder / f"step_{step:08d}", state, settings=SETTINGS)
        seen[str(step)] = {name: piece.values.tolist() for name, piece in state.items()}
    return seen


def test_training_goes_on_and_changes_weights_while_a_save_is_written_and_the_next_save_waits(
    tmp_path: Path,
) -> None:
    for rank, seen in enumerate(run_on_ranks(train_while_writing, 2, tmp_path)):
        assert seen["sum"] == 4 and seen["complete"] == [] and seen["events at least"] == ["begin", "end"]
        assert seen["10"] == expected_state(rank, (0, 6, 12), step=10) and seen["20"] == expected_state(
            rank, (0, 6, 12), step=20
        )


def fail_behind_the_back(context: ParallelContext, folder: Path) -> list[str]:
    """Who hears of a failed save: the next one, the end of the run, and nobody when the run ends with an
    error of its own."""
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


def refuse_another_model(context: ParallelContext, folder: Path) -> str:
    store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
    state = make_state(context.rank, (0, 6, 12), step=1)
    state["master/w"] = Slice(state["master/w"].values, state["master/w"].start, shape=(6, 2))
    del state["buffer/threshold"]
    with pytest.raises(ValueError) as refusal:
        store.load(
            folder / "step_00000020",
            state,
            settings={"moe": {"num_experts": 8, "capacity": 1.0}, "model": {"width": 32}},
        )
    return str(refusal.value)


def test_checkpoint_of_another_model_is_refused_with_tensors_and_settings(two_checkpoints: Path) -> None:
    for message in run_on_ranks(refuse_another_model, 2, two_checkpoints):
        assert message == (
            f"checkpoint {two_checkpoints / 'step_00000020'} is of another model: 2 tensors differ, such as "
            "buffer/threshold is [2] there and missing here; master/w is [3, 4] there and [6, 2] here. "
            "Settings that differ: moe.num_experts was 4, is 8. Restore them, or choose another run.directory"
        )


def test_one_family_fills_whole_tensors_of_another_format(two_checkpoints: Path) -> None:
    tensors = {"w": torch.zeros(3, 4, dtype=torch.bfloat16)}
    fill_tensors(two_checkpoints / "step_00000020", tensors, family="master", settings=SETTINGS)
    # 2000 to 2011 are no numbers of bf16; the nearest are multiples of 8.
    assert torch.equal(tensors["w"], (torch.arange(12.0).view(3, 4) + 2000).bfloat16())


def test_filling_another_models_tensors_is_refused(two_checkpoints: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"1 tensors differ, such as master/w is \[3, 4\] there and \[4, 3\] here\. "
        "Settings that differ: none",
    ):
        fill_tensors(
            two_checkpoints / "step_00000020", {"w": torch.zeros(4, 3)}, family="master", settings=SETTINGS
        )


def test_filling_from_a_short_file_says_that_it_is_damaged(copy: Path) -> None:
    for path in (copy / "step_00000020").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step_00000020.* is damaged"):
        fill_tensors(copy / "step_00000020", {"w": torch.zeros(3, 4)}, family="master", settings=SETTINGS)
