"""torch.distributed.checkpoint's files: written with the disk's own errors, read so that they run no code."""

import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any  # torch's storage interface is untyped

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import SavePlan, SavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from diffmoe_scale.parallel.slice import Slice

ALLOWED = {
    "pathlib": {"PosixPath"},
    "torch": {
        "Size",
        "float32",
        "float16",
        "bfloat16",
        "float64",
        "int64",
        "int32",
        "uint8",
        "bool",
        "strided",
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""All that the `.metadata` of a checkpoint of ours names; none of it acts when it is called."""
DATA_FILE = re.compile(r"__\d+_\d+\.distcp", re.ASCII)


class Reader(dcp.FileSystemReader):
    """torch 2.14 reads `.metadata` by a plain `pickle.load` (pytorch#189308): a folder made by someone else
    would run commands. Tensors are read with weights_only=True by torch itself."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Raises: ValueError if the file is damaged or names what no checkpoint of ours holds."""
        metadata = read_metadata(Path(self.path, ".metadata"))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class Writer(dcp.FileSystemWriter):
    """Fails with the disk's own words: torch's archive makes "unexpected pos 704 vs 598" of a full one."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_metadata(path: Path) -> Metadata:
    """The table of tensors of a checkpoint: only plain tensors in files of its own folder.

    Raises: ValueError.
    """
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} holds a {type(metadata).__name__}; expected a checkpoint's Metadata")
    try:
        _check_tensors(path, metadata)
    except (AttributeError, TypeError) as error:  # objects of ours that lack what ours have
        raise ValueError(f"{path} is damaged: {error}") from error
    return metadata


def find_problem(path: Path) -> str:
    """What is wrong with a `.metadata`, or nothing. torch would print a traceback for it."""
    try:
        read_metadata(path)
    except ValueError as error:
        return str(error)
    return ""


def _check_tensors(path: Path, metadata: Metadata) -> None:
    tables = (metadata.state_dict_metadata, metadata.storage_data)
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} is damaged: it has no table of tensors")
    for name, entry in metadata.state_dict_metadata.items():
        # Any other item is unpickled freely by torch.
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(
                f"{path} is refused: {name!r} is a {type(entry).__name__}; expected tensors alone"
            )
    _check_places(path, metadata)


def _check_places(path: Path, metadata: Metadata) -> None:
    """Every tensor lies in files of the folder as a whole, between their first and last byte."""
    sizes: dict[str, int] = {}
    for index, place in metadata.storage_data.items():
        if not DATA_FILE.fullmatch(str(getattr(place, "relative_path", ""))) or place.transform_descriptors:
            raise ValueError(f"{path} is refused: {index} is not plain data in a file of the same folder")
        name = place.relative_path
        if name not in sizes:
            file = path.with_name(name)
            sizes[name] = file.stat().st_size if file.is_file() and not file.is_symlink() else -1
        if not _is_within(place.offset, place.length, sizes[name]):
            held = f"has {sizes[name]} bytes" if sizes[name] >= 0 else "is not there, or no file"
            raise ValueError(
                f"{path} is damaged: {index} is at bytes {place.offset} + {place.length} of {name}, "
                f"which {held}"
            )


def _is_within(offset: object, length: object, size: int) -> bool:
    if type(offset) is not int or type(length) is not int:
        return False
    return 0 <= offset <= size and 0 < length <= size - offset


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")
        return super().find_class(module, name)


def global_view(piece: Slice) -> Tensor:
    """The slice with what torch.distributed.checkpoint's CheckpointableTensor protocol asks for."""
    view: Any = piece.values.view(-1)
    view.global_shape = (torch.Size(piece.shape).numel(),)
    view.global_offsets, view.local_offsets, view.local_sizes = ((piece.start,),), ((0,),), ((view.numel(),),)
    return view


class HostCopies:
    """Copies of slices in host memory that is allocated once, page-locked where they come from a GPU."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def prepare(self, state: Mapping[str, Slice]) -> Callable[[], dict[str, Slice]]:
        """What copies the slices, on any thread, and returns the copies; the next overwrites them.

        A GPU copies beside its computation, what was launched before this call first.
        """
        for name, piece in state.items():
            if name not in self._tensors or self._tensors[name].shape != piece.values.shape:
                self._tensors[name] = torch.empty_like(
                    piece.values, device="cpu", pin_memory=piece.values.is_cuda
                )
        stream = None
        if any(piece.values.is_cuda for piece in state.values()):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
        return partial(self._copy, state, stream)

    def _copy(self, state: Mapping[str, Slice], stream: torch.cuda.Stream | None) -> dict[str, Slice]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            for name, piece in state.items():
                self._tensors[name].copy_(piece.values.detach(), non_blocking=True)
        if stream is not None:
            stream.synchronize()
        return {name: replace(piece, values=self._tensors[name]) for name, piece in state.items()}


def first_reason(error: BaseException) -> str:
    """The sentence of the first rank's failure; torch prints a traceback for each."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (reason, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(reason).__name__}: {reason}"
    return str(error)
