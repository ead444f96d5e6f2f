import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from tests.checkpoint.states import (
    SETTINGS,
    even_cuts,
    expected_state,
    flip_bit,
    load_newest,
    make_state,
    newest_name,
    save,
    truncate,
    write,
)
from tests.ranks import run_on_ranks


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


def flip_a_digit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert '"samples": 160' in text
    path.write_text(text.replace('"samples": 160', '"samples": 161'), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "bit in the data": (flip_bit, "__1_0.distcp", "__1_0.distcp has another check sum"),
    "short data": (truncate, "__0_0.distcp", "__0_0.distcp has [0-9]+ bytes instead of"),
    "missing data": (Path.unlink, "__1_0.distcp", "__1_0.distcp is missing"),
    "bit in the metadata": (flip_bit, ".metadata", ".metadata has another check sum"),
    "short manifest": (truncate, "manifest.json", "manifest.json cannot be read"),
    "digit in the manifest": (flip_a_digit, "manifest.json", "manifest.json of .* has another check sum"),
    "bit in a name in the manifest": (partial(flip_bit, place=0.01), "manifest.json", "manifest.json"),
}


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


def reach_the_damaged_step_again(context: ParallelContext, folder: Path) -> tuple[str, int]:
    """Step 20 is made anew, and counts as kept like any other."""
    store = CheckpointStore(folder, CheckpointConfig(keep_last=2), group=context.checkpoint_group)
    store.newest()
    for step in (20, 30):
        assert write(store, make_state(context.rank, even_cuts(context.world_size), step=step), step)
    kept = " ".join(sorted(path.name[-2:] for path in folder.glob("step_*")))
    return kept, json.loads((folder.parent / "saved.json").read_text())["step"]


def test_a_damaged_checkpoint_that_is_made_anew_is_kept(copy: Path) -> None:
    flip_bit(copy / "step_00000020" / "__0_0.distcp")
    assert run_on_ranks(reach_the_damaged_step_again, 2, copy)[0] == ("20 30", 30)


def load_what_is_lost(context: ParallelContext, folder: Path) -> list[str]:
    """Files that were there when the checkpoint was chosen, and not when it was read."""
    store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
    state, answers = make_state(context.rank, even_cuts(context.world_size), step=1), []
    for step, name in ((20, "__0_0.distcp"), (10, ".metadata")):
        dist.barrier(group=context.checkpoint_group)
        if context.rank == 0:
            (folder / f"step_{step:08d}" / name).unlink()
        dist.barrier(group=context.checkpoint_group)
        with pytest.raises(RunError) as refusal:
            store.load(folder / f"step_{step:08d}", state, settings=SETTINGS)
        answers.append(str(refusal.value))
    return answers


def test_files_that_are_lost_before_they_are_read_are_a_sentence(copy: Path) -> None:
    for data, metadata in run_on_ranks(load_what_is_lost, 2, copy):
        assert data.endswith(" of __0_0.distcp, which is not there, or no file")
        assert f"{copy}/step_00000010/.metadata" in metadata
        assert "Traceback" not in data + metadata


def test_run_whose_checkpoints_are_all_damaged_stops(copy: Path) -> None:
    for path in copy.glob("*/__0_0.distcp"):
        truncate(path)
    for message in run_on_ranks(refuse_newest, 2, copy):
        assert message == (
            f"every checkpoint in {copy} is damaged (the log names the files); "
            "restore one, or choose another run.directory"
        )
