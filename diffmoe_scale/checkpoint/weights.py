"""One family of a checkpoint's weights on one process, whatever layout of ranks wrote them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any  # settings of any type

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from diffmoe_scale.checkpoint.files import Reader, find_problem, first_reason, global_view
from diffmoe_scale.checkpoint.manifest import METADATA, check_model, read_manifest
from diffmoe_scale.parallel.slice import Slice


def fill_tensors(
    checkpoint: Path,
    tensors: Mapping[str, Tensor],
    *,
    family: str,
    settings: Mapping[str, Any],
    elsewhere: Collection[str] = (),
) -> None:
    """Copy one family into whole tensors of any dtype, by name, on one process and without its peers.
    Tensors `elsewhere` are in the checkpoint and on other ranks.

    Raises: ValueError naming tensors and settings if the checkpoint is of another model, or what is damaged.
    """
    manifest = read_manifest(checkpoint)
    pieces = {f"{family}/{name}": Slice.whole(tensor) for name, tensor in tensors.items()}
    held = {name: shape for name, shape in manifest.shapes.items() if name.startswith(f"{family}/")}
    held = {name: shape for name, shape in held.items() if name.removeprefix(f"{family}/") not in elsewhere}
    shapes = {name: list(piece.shape) for name, piece in pieces.items()}
    check_model(checkpoint, manifest, shapes, settings, held=held)
    if problem := find_problem(checkpoint / METADATA):
        raise ValueError(problem)
    views = {name: global_view(piece) for name, piece in pieces.items()}
    try:
        dcp.load(views, storage_reader=Reader(checkpoint), no_dist=True)
    except CheckpointException as error:
        raise ValueError(f"{checkpoint} is damaged: {first_reason(error)}") from error
