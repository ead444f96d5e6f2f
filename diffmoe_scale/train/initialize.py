"""`run.initialize_from`: a new run that begins with the weights and thresholds of another, and nothing else
of it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar  # Any: settings of any type

import torch.distributed as dist

from diffmoe_scale.checkpoint.agreement import agree
from diffmoe_scale.checkpoint.manifest import MOST_SHOWN, different_shapes
from diffmoe_scale.checkpoint.stored import (
    FAMILIES,
    StoredWeights,
    When,
    different_settings,
    open_weights,
)
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.files import replace_file
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.train.cautions import caution_of_rounded_weights
from diffmoe_scale.train.engine import Engine

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def copy_tokenizer(config: Config, directory: RunDirectory) -> bool:
    """Give the run the tokenizer of the weights that it begins with; False if there is none. Raises:
    ValueError if the weights cannot be read."""
    if not config.run.initialize_from:
        return False
    stored = open_weights(Path(config.run.initialize_from), check_files="never")
    if not stored.tokenizer:
        return False
    replace_file(directory.tokenizer, stored.tokenizer)
    logger.info("the tokenizer is that of run.initialize_from %s", stored.path)
    return True


def begin_from_weights(
    engine: Engine,
    config: Config,
    context: ParallelContext,
    *,
    step: int,
    settings: Mapping[str, Any],
) -> None:
    """Fill the engine of a run that is at step 0 with the weights of `run.initialize_from`, if it is set.
    Collective over the world.

    Where these are of one family, weights and averages both begin with it. `settings` are the identity of the
    run's model: differences are said, but only names and shapes must be the same.

    Raises: ValueError naming tensors if they are not those of this model, or what is damaged.
    """
    if not config.run.initialize_from:
        return
    if step > 0:
        logger.info("run.initialize_from is not used: the run has a checkpoint")
        return
    path, group = Path(config.run.initialize_from), context.checkpoint_group
    # The main rank reads all files for the others.
    when: When = "now" if context.is_main else "never"
    stored = _together(group, lambda: open_weights(path, check_files=when))
    families = [name for name in FAMILIES if name != "ema2" or "ema2" in engine.averages]
    sources = {family: _source_of(family, stored) for family in families}
    state = {name: piece for name, piece in engine.state().items() if name.split("/")[0] in sources}
    shapes: dict[str, list[int]] = {}
    for found in agree(group, lambda: {name: list(piece.shape) for name, piece in state.items()}):
        shapes |= found
    changed = different_settings(stored.settings, settings)
    _check_tensors(stored, shapes, sources, changed)
    _together(group, lambda: _fill(state, stored, sources))
    engine.restored(step_count=0)
    logger.info(
        "begins with the weights of run.initialize_from %s (step %d): weights from its %s, averages from its "
        "%s, thresholds kept; the optimizer's state is new",
        stored.path,
        stored.step,
        sources["master"],
        sources["ema"],
    )
    dtypes = [tensor.dtype for tensor in stored.family(sources["master"]).values()]
    for line in caution_of_rounded_weights(str(stored.path), dtypes):
        logger.warning("%s", line)
    if changed:
        logger.warning("settings differ from those of run.initialize_from: %s", "; ".join(changed))
    if moved := config.model.other_places(stored.config.model):
        logger.warning("%s", moved)


def _together(group: dist.ProcessGroup, action: Callable[[], Answer]) -> Answer:
    """What the action gives on this rank. Collective. Raises: ValueError on all ranks if one raised it."""
    answers: list[Answer] = []

    def attempt() -> str:
        try:
            answers.append(action())
        except ValueError as error:
            return str(error)
        return ""

    if problem := next(filter(None, agree(group, attempt)), ""):
        raise ValueError(problem)
    return answers[0]


def _source_of(family: str, stored: StoredWeights) -> str:
    """The family of the stored weights that this one begins with."""
    if family == "buffer" or family in stored.families:
        return family
    return "ema" if family != "ema" and "ema" in stored.families else "master"


def _check_tensors(
    stored: StoredWeights,
    shapes: Mapping[str, list[int]],
    sources: Mapping[str, str],
    changed: Sequence[str],
) -> None:
    """Raises: ValueError unless the stored families hold exactly the tensors of this model."""
    held = {
        f"{family}/{name}": list(tensor.shape)
        for family, source in sources.items()
        for name, tensor in stored.family(source).items()
    }
    if wrong := different_shapes(held, shapes):
        raise ValueError(
            f"run.initialize_from {stored.path} has weights of another model ({len(wrong)} here), "
            f"such as {'; '.join(wrong[:MOST_SHOWN])}. Settings that differ: {'; '.join(changed) or 'none'}"
        )


def _fill(state: Mapping[str, Slice], stored: StoredWeights, sources: Mapping[str, str]) -> None:
    for key, piece in state.items():
        family, _, name = key.partition("/")
        values = stored.tensors[f"{sources[family]}/{name}"].read().reshape(-1)
        piece.values.copy_(values[piece.start : piece.start + piece.values.numel()].view_as(piece.values))
