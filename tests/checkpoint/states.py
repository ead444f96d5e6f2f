"""A state that is cut among ranks, and what saves it and reads it back."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any  # answers of ranks

import torch

from diffmoe_scale.checkpoint import store as module
from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice

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


@contextlib.contextmanager
def messages_of_the_store() -> Iterator[list[str]]:
    """What this rank logs meanwhile."""
    messages: list[str] = []
    handler = logging.Handler()
    # The shortest handler.
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    module.logger.addHandler(handler)
    yield messages
    module.logger.removeHandler(handler)


def load_newest(
    context: ParallelContext, folder: Path, cuts: Cuts | None = None
) -> tuple[dict[str, list[float]], list[str], int]:
    """What the newest checkpoint holds for this rank, what was logged, and its number of samples."""
    store = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group)
    with messages_of_the_store() as messages:
        found = store.newest()
        assert found is not None
        state = empty_state(context.rank, cuts or even_cuts(context.world_size))
        loaded = store.load(found[0], state, settings=SETTINGS)
    assert loaded == found[1]
    return {name: piece.values.tolist() for name, piece in state.items()}, messages, loaded.samples


def expected_state(rank: int, cuts: Cuts, *, step: int) -> dict[str, list[float]]:
    return {name: piece.values.tolist() for name, piece in make_state(rank, cuts, step=step).items()}


def newest_name(context: ParallelContext, folder: Path) -> str:
    found = CheckpointStore(folder, CheckpointConfig(), group=context.checkpoint_group).newest()
    return found[0].name if found else "none"


def flip_bit(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
