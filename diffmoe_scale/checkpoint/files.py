"""torch.distributed.checkpoint's files: written with the disk's own errors, read so that they run no code."""

import os
import pickle
import re
from pathlib import Path
from typing import IO, Any  # torch's storage interface is untyped

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
DATA_FILE = re.compile(r"__\d+_\d+\.distcp")


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
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} holds a {type(metadata).__name__}; expected a checkpoint's Metadata")
    _check_tensors(path, metadata)
    return metadata


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
    for index, place in metadata.storage_data.items():
        if not DATA_FILE.fullmatch(str(getattr(place, "relative_path", ""))) or place.transform_descriptors:
            raise ValueError(f"{path} is refused: {index} is not plain data in a file of the same folder")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

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


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_reason(error: BaseException) -> str:
    """The sentence of the first rank's failure; torch prints a traceback for each."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (reason, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(reason).__name__}: {reason}"
    return str(error)
