"""The tensors of a checkpoint of a run, one by one, on one process."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # torch's storage interface is untyped

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from diffmoe_scale.checkpoint.files import Reader, first_reason
from diffmoe_scale.checkpoint.manifest import METADATA, MOST_SHOWN, Manifest, find_damage
from diffmoe_scale.checkpoint.tensor_file import LazyTensor


class TensorReader(Reader):
    """Reads the table of tensors once. With a manifest, a file is compared with its check sum before the
    first of its tensors is read: the system still holds it then, and the disk reads it once."""

    def __init__(self, checkpoint: Path, manifest: Manifest | None = None) -> None:
        """Raises: ValueError if the table is damaged, or files are missing or too short for it."""
        super().__init__(checkpoint)
        self.checkpoint, self.manifest = checkpoint, manifest
        self._unchecked = set() if manifest is None else set(manifest.files)
        self._check([METADATA])
        self._table = super().read_metadata()
        self._files: dict[str, set[str]] = {}
        for index, place in self._table.storage_data.items():
            self._files.setdefault(index.fqn, set()).add(place.relative_path)

    def _check(self, names: Sequence[str]) -> None:
        """Raises: ValueError if one of these files is damaged."""
        if self.manifest is None:
            return
        wanted = [name for name in names if name in self._unchecked]
        if damage := find_damage(self.checkpoint, self.manifest, wanted):
            raise ValueError(f"{self.checkpoint} is damaged: {'; '.join(damage[:MOST_SHOWN])}")
        self._unchecked.difference_update(wanted)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._table

    def tensor(self, name: str, shape: Sequence[int]) -> LazyTensor:
        """Raises: ValueError if the table of tensors has no such tensor."""
        entry = self._table.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata) or entry.size.numel() != torch.Size(shape).numel():
            size = "no" if entry is None else "another"
            raise ValueError(
                f"{self.checkpoint / METADATA} is damaged: it has {size} tensor {name!r} of shape "
                f"{list(shape)}"
            )
        dtype = entry.properties.dtype

        def read() -> torch.Tensor:
            self._check(sorted(self._files.get(name, ())))
            flat = torch.empty(torch.Size(shape).numel(), dtype=dtype)
            try:
                with warnings.catch_warnings():
                    # It says of each tensor that this process is alone.
                    warnings.simplefilter("ignore", UserWarning)
                    dcp.load({name: flat}, storage_reader=self, no_dist=True)
            except CheckpointException as error:
                raise ValueError(f"{self.checkpoint} is damaged: {name}: {first_reason(error)}") from error
            return flat.view(tuple(shape))

        return LazyTensor(tuple(shape), dtype, read)
