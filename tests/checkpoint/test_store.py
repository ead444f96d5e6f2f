import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any  # answers of ranks

import pytest

from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from tests.checkpoint.states import SETTINGS, Cuts, expected_state, load_newest, make_state, newest_name, save
from tests.ranks import run_on_ranks


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
            f"checkpoint {two_checkpoints / 'step_00000020'} is of another model. "
            "Settings that differ: moe.num_experts was 4, is 8. Restore them, or choose another "
            "run.directory. 2 tensors of other shape, such as buffer/threshold is [2] there and missing "
            "here; master/w is [3, 4] there and [6, 2] here"
        )
