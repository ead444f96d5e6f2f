"""The bytes of a sample's features, and batches of them."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any  # JSON

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from diffmoe_scale.data.features.source import BITS, PRECISIONS, CaptionFeatures, FeatureSource, StoredCaption
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.encoders.text.features import TextFeatures, TextStream

NUMPY_TYPES = {
    "BF16": BITS["bf16"],
    "F8_E4M3": BITS["fp8"],
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
}
"""safetensors' types in numpy; of those that it has not, the bits."""
NOT_FINITE = {BITS["bf16"]: 0x7F80, BITS["fp8"]: 0x7F}
"""Bits without the sign from which on a number is inf or NaN: bf16 has both, fp8 (e4m3fn) one NaN."""
LARGEST_SIDE = 1 << 20
"""Of the pictures that features are made from."""


def pack_sample(
    latents_VCHW: Tensor,
    captions: Sequence[CaptionFeatures],
    weights: Sequence[float],
    *,
    original: Size,
    crop: tuple[int, int],
    precision: str,
) -> bytes:
    """The member of one sample; `captions`, drawn by `weights`, is empty in sets without text. `original` and
    `crop` are those of Picture."""
    tensors = {"latents_VCHW": latents_VCHW}
    if captions:
        tensors |= {
            "tokens_LT": torch.cat([caption.tokens_LT.float() for caption in captions]),
            "pooled_KP": torch.stack([c.pooled_P for c in captions]),
        }
    stored = {name: to_stored(tensor, precision) for name, tensor in tensors.items()}
    stored["origin_Z"] = torch.tensor([*original, *crop], dtype=torch.int32)
    if captions:
        stored["lengths_K"] = torch.tensor(
            [len(caption.tokens_LT) for caption in captions], dtype=torch.int32
        )
    if len(captions) > 1:
        stored["weights_K"] = torch.tensor(weights, dtype=torch.float32)
    return safetensors.torch.save(stored)


def to_stored(tensor: Tensor, precision: str) -> Tensor:
    """In the stored format, on the CPU; fp8 saturates at its largest number, where a cast would give NaN."""
    stored = PRECISIONS[precision]
    limit = torch.finfo(stored).max
    # In fp32: few operations are there for 8 bits.
    return tensor.detach().cpu().float().clamp(-limit, limit).to(stored).contiguous()


@dataclass(frozen=True)
class Latents:
    """Of one view of a picture, with what Picture tells beside the pixels."""

    bits_CHW: np.ndarray
    """In the stored format."""
    original: Size
    crop: tuple[int, int]


@dataclass(frozen=True)
class SampleFeatures:
    """A member as it is stored, floating-point numbers as their bits."""

    latents_VCHW: np.ndarray
    origin_Z: np.ndarray
    tokens_LT: np.ndarray | None = None
    pooled_KP: np.ndarray | None = None
    lengths_K: np.ndarray | None = None
    weights_K: np.ndarray | None = None

    def latents(self, view: int) -> Latents:
        """Raises: ValueError, IndexError where they are not stored, or no numbers to train on."""
        height, width, top, left = self.origin_Z.tolist()
        original = _checked_original(height, width)
        if not (0 <= top <= LARGEST_SIDE and 0 <= left <= LARGEST_SIDE):
            raise ValueError(
                f"cut {top} rows and {left} columns from the corner; expected 0 to {LARGEST_SIDE}"
            )
        bits_CHW = self.latents_VCHW[view]
        _require_finite("latents_VCHW", bits_CHW)
        return Latents(bits_CHW, original, (top, left))

    def caption_weights(self) -> list[float]:
        """By which a caption is drawn; empty where there is none. Raises: ValueError where the tensors do not
        fit each other, or weights are none."""
        number = 0 if self.lengths_K is None else len(self.lengths_K)
        weights = [1.0] * number if self.weights_K is None else self.weights_K.tolist()
        rows = (
            (0, 0)
            if self.tokens_LT is None or self.pooled_KP is None
            else (len(self.tokens_LT), len(self.pooled_KP))
        )
        lengths = [] if self.lengths_K is None else self.lengths_K.tolist()
        if any(length < 1 for length in lengths):
            raise ValueError(f"captions of {lengths} tokens; expected at least 1 each")
        if not all(0 <= weight < math.inf for weight in weights) or (weights and not sum(weights) > 0):
            raise ValueError(f"captions are drawn by the weights {weights}; expected 0 or more, one above 0")
        expected = (sum(lengths), number)
        if rows != expected or len(weights) != number:
            raise ValueError(
                f"{rows[0]} tokens and {rows[1]} pooled features of {number} captions; expected {expected}"
            )
        return weights

    def caption(self, number: int) -> StoredCaption:
        """Features of caption `number` of those that have weights. Raises: ValueError for numbers that are
        not finite."""
        assert self.tokens_LT is not None and self.lengths_K is not None and self.pooled_KP is not None
        lengths = self.lengths_K.tolist()
        first = sum(lengths[:number])
        found = StoredCaption(self.tokens_LT[first : first + lengths[number]], self.pooled_KP[number])
        _require_finite("tokens_LT", found.tokens_LT)
        _require_finite("pooled_KP", found.pooled_P)
        return found


def _require_finite(name: str, bits: np.ndarray) -> None:
    """Raises: ValueError if bf16 or fp8 numbers, given as their bits, are not all finite."""
    limit = NOT_FINITE[bits.dtype]
    # Two passes over integers: a tenth of the time that a conversion to float takes.
    without_sign = bits & bits.dtype.type((1 << 8 * bits.itemsize - 1) - 1)
    if without_sign.size and without_sign.max() >= limit:
        number = int((without_sign >= limit).sum())
        raise ValueError(f"{number} of {bits.size} numbers of {name} are inf or NaN")


def _checked_original(height: int, width: int) -> Size:
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise ValueError(f"made from a picture of {height} x {width}; expected sides of 1 to {LARGEST_SIDE}")
    return Size(height, width)


def stored_original(data: bytes) -> Size:
    """Of the picture that a member was made from; the beginning of its bytes may do. Raises: KeyError,
    TypeError or ValueError for other bytes."""
    place = _places(_header(data))["origin_Z"]
    height, width = np.frombuffer(data, place.dtype, count=2, offset=place.offset).tolist()
    return _checked_original(height, width)


@dataclass(frozen=True)
class _Place:
    """Of one array in a member."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    offset: int


def _header(data: bytes) -> bytes:
    """What comes before the arrays: in safetensors' format, the length of a text in JSON, and the text."""
    return data[: 8 + int.from_bytes(data[:8], "little")]


@functools.lru_cache(maxsize=4096)
def _places(header: bytes) -> dict[str, _Place]:
    """Cached: most samples have the same. Raises: KeyError, TypeError or ValueError for other bytes."""
    return {name: _place(entry, len(header)) for name, entry in json.loads(header[8:]).items()}


def _place(entry: dict[str, Any], start: int) -> _Place:
    dtype, shape = NUMPY_TYPES[entry["dtype"]], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    count = math.prod(shape)
    if any(size < 0 for size in shape) or first < 0 or last - first != count * dtype.itemsize:
        raise ValueError(f"bytes {first} to {last} for {entry['dtype']} of shape {shape}")
    return _Place(dtype, shape, count, start + first)


def unpack_sample(data: bytes, source: FeatureSource, size: Size) -> SampleFeatures:
    """Views of the bytes: safetensors' own loader copies them, and takes longer than all else of reading.

    Raises: KeyError, TypeError or ValueError for bytes that are no member of a set of that source, of an
    image of that size.
    """
    places = _places(_header(data))
    arrays = {
        name: np.frombuffer(data, place.dtype, place.count, place.offset).reshape(place.shape)
        for name, place in places.items()
    }
    found = SampleFeatures(**arrays)
    kinds = {
        array.dtype for array in (found.latents_VCHW, found.tokens_LT, found.pooled_KP) if array is not None
    }
    if kinds != {BITS[source.precision]}:
        raise ValueError(f"numbers of {kinds}; expected {source.precision}")
    if any(array is not None and array.ndim != 2 for array in (found.tokens_LT, found.pooled_KP)):
        raise ValueError("features of captions that are no [tokens, width] or [captions, width]")
    expected = (source.num_views, *source.latent_shape(size))
    if found.latents_VCHW.shape != expected:
        raise ValueError(f"latents of shape {tuple(found.latents_VCHW.shape)}; expected {expected}")
    return found


def stack_latents(
    latents: Sequence[np.ndarray | None], shape: tuple[int, int, int], *, precision: str
) -> Tensor:
    """[B, C, H, W] in bf16 of the bits of each sample's [C, H, W]; zeros for None."""
    stacked_BCHW = np.zeros((len(latents), *shape), BITS[precision])
    for row, bits_CHW in enumerate(latents):
        if bits_CHW is not None:
            stacked_BCHW[row] = bits_CHW
    return _to_bf16(stacked_BCHW, precision)


def stack_captions(captions: Sequence[StoredCaption], *, precision: str) -> TextFeatures:
    """Captions padded with zeros to the longest, in bf16."""
    lengths = [len(caption.tokens_LT) for caption in captions]
    tokens_BLT = np.zeros((len(captions), max(lengths), captions[0].tokens_LT.shape[1]), BITS[precision])
    for row, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
        tokens_BLT[row, :length] = caption.tokens_LT
    mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pooled_BP = np.stack([caption.pooled_P for caption in captions])
    return TextFeatures(
        (TextStream(_to_bf16(tokens_BLT, precision), mask_BL, _to_bf16(pooled_BP, precision)),)
    )


def _to_bf16(bits: np.ndarray, precision: str) -> Tensor:
    """bf16 holds both stored formats exactly; all zeros are zero in both."""
    return torch.from_numpy(bits).view(PRECISIONS[precision]).to(torch.bfloat16)
