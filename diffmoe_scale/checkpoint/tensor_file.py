"""safetensors files, a tensor at a time: nothing holds more than one tensor in memory.

The format (huggingface/safetensors): 8 bytes with the length of a JSON header, the header, then the bytes of
all tensors, one behind the other.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self  # Any: JSON trees

import torch
from torch import Tensor

from diffmoe_scale.json_text import parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_SHOWN = 5
LONGEST_HEADER = 100_000_000
"""safetensors' own limit."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, or computed, when it is asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> "LazyTensor":
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def map(self, change: Callable[[Tensor], Tensor], shape: Iterable[int] | None = None) -> Self:
        """The tensor that `change` makes of this one; `shape` where it is another."""
        return replace(
            self,
            shape=self.shape if shape is None else tuple(shape),
            read=lambda: change(self.read()),
        )

    def view(self, *shape: int) -> Self:
        return self.map(lambda tensor: tensor.reshape(shape), shape)

    def to(self, dtype: torch.dtype) -> Self:
        return replace(self, dtype=dtype, read=lambda: self.read().to(dtype))


def mean_tensor(parts: Sequence[LazyTensor]) -> LazyTensor:
    """The mean of tensors of one shape, added up in fp64."""

    def read() -> Tensor:
        total = parts[0].read().double()
        for part in parts[1:]:
            total += part.read()
        return (total / len(parts)).to(parts[0].dtype)

    return replace(parts[0], read=read)


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write a new file and have it on disk; tensors are read one after another. Raises: OSError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.num_bytes
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            values = tensor.read()
            assert (tuple(values.shape), values.dtype) == (tensor.shape, tensor.dtype), name
            file.write(bytes_of(values.contiguous()))
            del values  # before the next is read
        file.flush()
        os.fsync(file.fileno())


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """The metadata of a file, and its tensors.

    Raises: ValueError if it is no safetensors file or is damaged; a later read raises so, too, if the file
    has become shorter.
    """
    header, first = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path} is damaged: its metadata are no texts")
    tensors, end, entries = {}, 0, []
    for name, entry in header.items():
        if isinstance(entry, dict) and isinstance(code := entry.get("dtype"), str) and code not in DTYPES:
            raise ValueError(
                f"{path}: {name!r} is in the number format {code}, which is not read; expected one of "
                f"{', '.join(DTYPES)}: save it in one of these"
            )
        try:
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            are_counts = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
            is_whole = are_counts and stop - start == math.prod(shape) * dtype.itemsize
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: the entry of {name!r} is {str(entry)[:120]}") from error
        if not is_whole:
            raise ValueError(
                f"{path} is damaged: {name!r} has shape {list(shape)} and bytes {start} to {stop}"
            )
        entries.append((start, stop, name))
        tensors[name] = LazyTensor(shape, dtype, _reader(path, name, first + start, shape, dtype))
    for start, stop, name in sorted(entries):
        if start != end:
            raise ValueError(f"{path} is damaged: {name!r} begins at byte {start}; expected {end}")
        end = stop
    if (size := path.stat().st_size) != first + end:
        raise ValueError(f"{path} is damaged: it has {size} bytes; its header speaks of {first + end}")
    return metadata, tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the place of the first tensor's bytes."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        size = os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"{path} is no safetensors file, or is truncated: it has {size} bytes")
        text = file.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is a {type(header).__name__}")
    return header, 8 + length


def _reader(
    path: Path, name: str, place: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        with path.open("rb") as file:
            file.seek(place)
            target = bytes_of(tensor)
            # typeshed has no readinto of Path.open("rb").
            if file.readinto(target) != len(target):  # type: ignore[attr-defined]
                raise ValueError(f"{path} is damaged: it ends within {name!r}")
        return tensor

    return read


def read_row(path: Path, name: str, number: int) -> Tensor:
    """`number` of the first dimension of a tensor of a file that `read_tensors` has looked at. Raises:
    ValueError as a read of it."""
    header, first = _read_header(path)
    entry = header[name]
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"][1:])
    row_bytes = torch.Size(shape).numel() * dtype.itemsize
    return _reader(path, name, first + entry["data_offsets"][0] + number * row_bytes, shape, dtype)()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()  # numpy's stubs know no buffer
    return memoryview(array)


def read_files(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """Metadata and tensors of one safetensors file, or of a folder of one or of several with an index.

    Raises: ValueError naming files and tensors that are missing or left over.
    """
    if path.is_file():
        return read_tensors(path)
    if (path / SINGLE).is_file():
        return read_tensors(path / SINGLE)
    return read_shards(path / INDEX)


def read_shards(index: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """The same of the files that an index names. Raises: ValueError."""
    try:
        places = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        are_plain = all("/" not in name and name.endswith(".safetensors") for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {type(error).__name__}: {error}") from error
    if not are_plain or not files:
        raise ValueError(f"{index} is damaged: expected names of safetensors files in its own folder")
    metadata: dict[str, str] = {}
    tensors: dict[str, LazyTensor] = {}
    for name in files:
        if not index.with_name(name).is_file():
            raise ValueError(f"{index.parent} is not complete: {name} is missing")
        found, held = read_tensors(index.with_name(name))
        expected = {key for key, file in places.items() if file == name}
        if wrong := sorted(expected ^ held.keys()):
            raise ValueError(
                f"{index.with_name(name)} does not hold what {index.name} says: "
                f"missing or left over are {len(wrong)}, such as {', '.join(wrong[:MOST_SHOWN])}"
            )
        metadata |= found
        tensors |= held
    return metadata, tensors
