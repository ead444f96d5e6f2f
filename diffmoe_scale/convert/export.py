"""The weights of a run as safetensors files: families, number format, averages over checkpoints, shards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.checkpoint.stored import KEPT, StoredWeights, export_metadata, open_checkpoint
from diffmoe_scale.checkpoint.tensor_file import INDEX, SINGLE, LazyTensor, mean_tensor, write_tensors
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.convert.place import new_target


def select_weights(stored: StoredWeights, weights: str) -> StoredWeights:
    """One family (`ema`, `ema2` or `master`) or `all`, with the thresholds. Raises: ValueError if it is not
    there."""
    families = [name for name in stored.families if name != "buffer"]
    if weights != "all" and weights not in families:
        raise ValueError(f"--weights is {weights!r}; {stored.path} holds {', '.join(families)}")
    kept = families if weights == "all" else [weights]
    starts = tuple(f"{name}/" for name in (*kept, "buffer", "source"))
    tensors = {name: tensor for name, tensor in stored.tensors.items() if name.startswith(starts)}
    return replace(stored, tensors=dict(sorted(tensors.items())))


def cast_weights(stored: StoredWeights, dtype: torch.dtype) -> StoredWeights:
    """Weights in another number format. Thresholds stay fp32: they decide. So does what the model has no use
    for but its origin had."""
    tensors = {
        name: tensor if name.startswith(KEPT) else tensor.to(dtype) for name, tensor in stored.tensors.items()
    }
    return replace(stored, tensors=tensors)


def average_checkpoints(path: Path, count: int, settings: Sequence[str] = ()) -> StoredWeights:
    """The mean of the weights of a run's newest `count` checkpoints, with the thresholds of the newest.

    Raises: ValueError if there are fewer.
    """
    directory = RunDirectory(path)
    found = complete_checkpoints(directory.checkpoints)
    if len(found) < count:
        raise ValueError(
            f"--average is {count}, but {directory.checkpoints} holds {len(found)} complete checkpoints; "
            "keep more by checkpoint.keep_last"
        )
    parts = [
        open_checkpoint(checkpoint, directory, settings, check_files="when read")
        for checkpoint in found[-count:]
    ]
    newest = parts[-1]
    tensors = {
        name: tensor if name.startswith(KEPT) else mean_tensor([part.tensors[name] for part in parts])
        for name, tensor in newest.tensors.items()
    }
    return replace(newest, tensors=tensors)


def write_export(stored: StoredWeights, target: Path, *, shard_gib: float = 0.0) -> None:
    """Write one safetensors file, or a folder if the name does not end so; with `shard_gib` the folder's
    files have at most that size (or one tensor).

    Raises: ValueError if the target exists or does not fit on its disk; OSError.
    """
    is_file = target.suffix == ".safetensors"
    if is_file and shard_gib:
        raise ValueError(f"--shard-gib is for a folder; {target} is the name of one file")
    size = sum(tensor.num_bytes for tensor in stored.tensors.values())
    with new_target(target, num_bytes=size) as path:
        write_files(stored, path, is_file=is_file, shard_gib=shard_gib)


def write_files(stored: StoredWeights, path: Path, *, is_file: bool, shard_gib: float) -> None:
    """The same at a path that is nobody's target yet."""
    metadata = export_metadata(stored)
    if is_file:
        write_tensors(path, stored.tensors, metadata)
        return
    path.mkdir()
    shards = split_shards(stored.tensors, round(shard_gib * 2**30))
    if len(shards) == 1:
        write_tensors(path / SINGLE, stored.tensors, metadata)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(path / file, {name: stored.tensors[name] for name in names}, metadata)
        places |= dict.fromkeys(names, file)
    size = sum(tensor.num_bytes for tensor in stored.tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (path / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def split_shards(tensors: Mapping[str, LazyTensor], limit: int) -> list[list[str]]:
    """Names by file, in order: files of at most `limit` bytes, or of one tensor; one file for 0."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if limit and shards[-1] and size + tensor.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.num_bytes
    return shards
