"""Files of torch.save, written a tensor at a time.

The format (torch 1.6 and later, torch/serialization.py) is a zip archive without compression: `data.pkl` with
the object, in which a tensor names its storage by a persistent id, and the bytes of each storage as `data/N`.
"""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what is pickled

import torch
from torch._utils import _rebuild_tensor_v2  # by this name a file says how a tensor is made

from diffmoe_scale.checkpoint.tensor_file import LazyTensor, bytes_of

ROOT = "archive"
VERSION = "3\n"
PROTOCOL = 2
ALIGNMENT = 64
"""Of the bytes of a storage, as torch has it: such a file can be mapped into memory."""
LOCAL_HEADER, ZIP64_EXTRA = 30, 20
PADDING = b"FB"
"""The mark of the field that torch, too, fills the headers with."""
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


def write_torch_archive(path: Path, content: object) -> None:
    """Write what torch.load reads as `content`, with tensors in the place of LazyTensors, and have it on
    disk. Raises: OSError."""
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(content)
    with path.open("xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, "data.pkl", text.getbuffer())
            _write(archive, "byteorder", b"little")
            for number, tensor in enumerate(pickler.tensors):
                values = tensor.read()
                assert (tuple(values.shape), values.dtype) == (tensor.shape, tensor.dtype), number
                _write(archive, f"data/{number}", bytes_of(values.contiguous()))
                del values  # before the next is read
            _write(archive, "version", VERSION.encode())
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class _Storage:
    """The bytes of a tensor, by their number."""

    number: int
    dtype: torch.dtype
    count: int


class _Pickler(pickle.Pickler):
    """Writes tensors as torch does, and remembers them instead of reading them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self.tensors: list[LazyTensor] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, LazyTensor):
            return NotImplemented
        shape = torch.Size(value.shape)
        storage = _Storage(len(self.tensors), value.dtype, shape.numel())
        self.tensors.append(value)
        strides = torch.empty(shape, device="meta").stride()
        return _rebuild_tensor_v2, (storage, 0, tuple(shape), strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return "storage", STORAGES[value.dtype], str(value.number), "cpu", value.count


def _write(archive: zipfile.ZipFile, name: str, data: "bytes | memoryview") -> None:
    """A record whose bytes begin at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    info.file_size = len(data)
    is_large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule
    assert archive.fp is not None  # as long as it is open
    start = archive.fp.tell() + LOCAL_HEADER + len(info.filename) + ZIP64_EXTRA * is_large
    padding = -(start + len(PADDING) + 2) % ALIGNMENT
    info.extra = PADDING + struct.pack("<H", padding) + bytes(padding)
    with archive.open(info, "w") as record:
        record.write(data)
