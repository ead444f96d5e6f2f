import threading
from pathlib import Path
from typing import Any  # answers of ranks

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from tests.checkpoint.states import SETTINGS, empty_state, even_cuts, expected_state, make_state, manifest
from tests.ranks import run_on_ranks


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
        store.wait_for_copy()
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
