"""Where the arrays of a sample's member lie, by its header in safetensors' format."""

import functools
import math
from dataclasses import dataclass
from typing import Any  # JSON

import numpy as np

from diffmoe_scale.data.features.source import BITS
from diffmoe_scale.json_text import parse_json

NUMPY_TYPES = {
    "BF16": BITS["bf16"],
    "F8_E4M3": BITS["fp8"],
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
}
"""safetensors' types in numpy; of those that it has not, the bits."""


@dataclass(frozen=True)
class Place:
    """Of one array in a member."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    offset: int


def header_of(data: bytes) -> bytes:
    """What comes before the arrays: in safetensors' format, the length of a text in JSON, and the text."""
    return data[: 8 + int.from_bytes(data[:8], "little")]


@functools.lru_cache(maxsize=4096)
def places_of(header: bytes) -> dict[str, Place]:
    """Cached: most samples have the same. Raises: KeyError, TypeError or ValueError for other bytes."""
    return {name: _place(entry, len(header)) for name, entry in parse_json(header[8:]).items()}


def _place(entry: dict[str, Any], start: int) -> Place:
    dtype, shape = NUMPY_TYPES[entry["dtype"]], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    count = math.prod(shape)
    if any(size < 0 for size in shape) or first < 0 or last - first != count * dtype.itemsize:
        raise ValueError(f"bytes {first} to {last} for {entry['dtype']} of shape {shape}")
    return Place(dtype, shape, count, start + first)
