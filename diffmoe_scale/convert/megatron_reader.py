"""Tensors of torch's distributed format, whole or one place of the first dimension at a time."""

import io
import warnings
from pathlib import Path
from typing import Any  # torch's planner interface is untyped

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    STATE_DICT_TYPE,
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from diffmoe_scale.checkpoint.files import Reader, first_reason
from diffmoe_scale.checkpoint.tensor_file import LazyTensor


class MegatronReader(Reader):
    """Reads the table of tensors once. Raises: ValueError if it is damaged or names what no tensor needs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self._table = super().read_metadata()

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._table

    @property
    def names(self) -> list[str]:
        return list(self._table.state_dict_metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name).size)

    def _entry(self, name: str) -> TensorStorageMetadata:
        entry = self._table.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)  # Reader has looked
        return entry

    def piece(self, name: str, place: int = -1) -> LazyTensor:
        """A tensor, or what is at a place of its first dimension."""
        entry, shape = self._entry(name), self.shape(name)
        sizes = shape if place < 0 else (1, *shape[1:])
        offsets = tuple(max(place, 0) if dim == 0 else 0 for dim in range(len(shape)))

        def read() -> Tensor:
            values = torch.empty(sizes, dtype=entry.properties.dtype)
            chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            plan = LoadPlan(create_read_items_for_chunk_list(name, entry, [chunk]))
            try:
                with warnings.catch_warnings():
                    # It says of each tensor that this process is alone.
                    warnings.simplefilter("ignore", UserWarning)
                    dcp.load({name: values}, storage_reader=self, planner=_Into(values, plan), no_dist=True)
            except CheckpointException as error:  # a BaseException in torch
                raise ValueError(f"{self.folder} is damaged: {name}: {first_reason(error)}") from error
            return values if place < 0 else values[0]

        return LazyTensor(sizes if place < 0 else shape[1:], entry.properties.dtype, read)


class _Into(LoadPlanner):
    """Loads what a plan says into one tensor."""

    def __init__(self, values: Tensor, plan: LoadPlan) -> None:
        self.values = values
        self.plan = plan

    def set_up_planner(
        self, state_dict: STATE_DICT_TYPE, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Nothing: all is known."""

    def create_local_plan(self) -> LoadPlan:
        return self.plan

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("the reader lets tensors through alone")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        target = self.values
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dim, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the tensor is filled in place."""
