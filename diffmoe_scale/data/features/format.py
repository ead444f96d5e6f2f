"""The bytes of a sample's features, and batches of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from diffmoe_scale.data.features.places import header_of, places_of
from diffmoe_scale.data.features.source import (
    BITS,
    PRECISIONS,
    CaptionFeatures,
    FeatureSource,
    StoredCaption,
    stream_name,
)
from diffmoe_scale.data.reading.pictures import Size

NOT_FINITE = {BITS["bf16"]: 0x7F80, BITS["fp8"]: 0x7F}
"""Bits without the sign from which on a number is inf or NaN: bf16 has both, fp8 (e4m3fn) one NaN."""
LARGEST_SIDE = 1 << 20
"""Of the pictures that features are made from."""


def pack_sample(
    latents_VCHW: Tensor,
    captions: Sequence[Sequence[CaptionFeatures]],
    weights: Sequence[float],
    *,
    original: Size,
    crop: tuple[int, int],
    precision: str,
    teacher_VNZ: Tensor | None = None,
) -> bytes:
    """The member of one sample; `captions`, each by all encoders and drawn by `weights`, are none in sets
    without text, `teacher_VNZ` in those without alignment. `original` and `crop` are those of Picture."""
    stored = {"latents_VCHW": to_stored(latents_VCHW, precision)}
    if teacher_VNZ is not None:
        stored["teacher_VNZ"] = to_stored(teacher_VNZ, precision)
    stored["origin_Z"] = torch.tensor([*original, *crop], dtype=torch.int32)
    for number, stream in enumerate(zip(*captions, strict=True)):
        tokens_LT = torch.cat([caption.tokens_LT.float() for caption in stream])
        stored[stream_name("tokens_LT", number)] = to_stored(tokens_LT, precision)
        lengths = [len(caption.tokens_LT) for caption in stream]
        stored[stream_name("lengths_K", number)] = torch.tensor(lengths, dtype=torch.int32)
        pooled = [caption.pooled_P for caption in stream if caption.pooled_P is not None]
        if pooled:
            stored[stream_name("pooled_KP", number)] = to_stored(torch.stack(pooled), precision)
    if len(captions) > 1:
        stored["weights_K"] = torch.tensor(weights, dtype=torch.float32)
    return safetensors.torch.save(stored)


def to_stored(tensor: Tensor, precision: str) -> Tensor:
    """In the stored format, on the CPU; fp8 saturates at its largest number, where a cast would give NaN.
    Infinities become NaN: a large number in their place would be trained on."""
    stored = PRECISIONS[precision]
    limit = torch.finfo(stored).max
    # In fp32: few operations are there for 8 bits.
    values = tensor.detach().cpu().float()
    return values.clamp(-limit, limit).where(values.isfinite(), torch.nan).to(stored).contiguous()


@dataclass(frozen=True)
class Latents:
    """Of one view of a picture, with what Picture tells beside the pixels."""

    bits_CHW: np.ndarray
    """In the stored format."""
    original: Size
    crop: tuple[int, int]
    teacher_NZ: np.ndarray | None = None
    """Features for alignment of this view, in the stored format."""


@dataclass(frozen=True)
class StoredStream:
    """The captions of a sample by one encoder, as they are stored."""

    tokens_LT: np.ndarray
    lengths_K: np.ndarray
    pooled_KP: np.ndarray | None = None

    def check(self, num_captions: int) -> None:
        """Raises: ValueError where the tensors do not fit each other."""
        lengths = self.lengths_K.tolist()
        if any(length < 1 for length in lengths):
            raise ValueError(f"captions of {lengths} tokens; expected at least 1 each")
        pooled = num_captions if self.pooled_KP is None else len(self.pooled_KP)
        found, expected = (len(self.tokens_LT), pooled), (sum(lengths), num_captions)
        if found != expected or len(lengths) != num_captions:
            raise ValueError(
                f"{found[0]} tokens and {pooled} pooled features of {len(lengths)} captions; expected "
                f"{expected}"
            )

    def caption(self, number: int) -> StoredCaption:
        """Raises: ValueError for numbers that are not finite."""
        lengths = self.lengths_K.tolist()
        first = sum(lengths[:number])
        tokens_LT = self.tokens_LT[first : first + lengths[number]]
        _require_finite("tokens_LT", tokens_LT)
        if self.pooled_KP is None:
            return StoredCaption(tokens_LT, None)
        _require_finite("pooled_KP", self.pooled_KP[number])
        return StoredCaption(tokens_LT, self.pooled_KP[number])


@dataclass(frozen=True)
class SampleFeatures:
    """A member as it is stored, floating-point numbers as their bits."""

    latents_VCHW: np.ndarray
    origin_Z: np.ndarray
    streams: tuple[StoredStream, ...] = ()
    weights_K: np.ndarray | None = None
    teacher_VNZ: np.ndarray | None = None

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
        teacher_NZ = None if self.teacher_VNZ is None else self.teacher_VNZ[view]
        if teacher_NZ is not None:
            _require_finite("teacher_VNZ", teacher_NZ)
        return Latents(bits_CHW, original, (top, left), teacher_NZ)

    def caption_weights(self) -> list[float]:
        """By which a caption is drawn; empty where there is none. Raises: ValueError where the tensors do not
        fit each other, or weights are none."""
        number = len(self.streams[0].lengths_K) if self.streams else 0
        weights = [1.0] * number if self.weights_K is None else self.weights_K.tolist()
        for stream in self.streams:
            stream.check(number)
        if not all(0 <= weight < math.inf for weight in weights) or (weights and not sum(weights) > 0):
            raise ValueError(f"captions are drawn by the weights {weights}; expected 0 or more, one above 0")
        if len(weights) != number:
            raise ValueError(f"{len(weights)} weights of {number} captions")
        return weights

    def caption(self, number: int) -> tuple[StoredCaption, ...]:
        """Features of caption `number` of those that have weights, by each encoder. Raises: ValueError for
        numbers that are not finite."""
        return tuple(stream.caption(number) for stream in self.streams)


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
    place = places_of(header_of(data))["origin_Z"]
    height, width = np.frombuffer(data, place.dtype, count=2, offset=place.offset).tolist()
    return _checked_original(height, width)


def unpack_sample(data: bytes, source: FeatureSource, size: Size) -> SampleFeatures:
    """Views of the bytes: safetensors' own loader copies them, and takes longer than all else of reading.

    Raises: KeyError, TypeError or ValueError for bytes that are no member of a set of that source, of an
    image of that size.
    """
    places = places_of(header_of(data))
    arrays = {
        name: np.frombuffer(data, place.dtype, place.count, place.offset).reshape(place.shape)
        for name, place in places.items()
    }
    found = _join(arrays)
    texts = [array for stream in found.streams for array in (stream.tokens_LT, stream.pooled_KP)]
    kinds = {array.dtype for array in (found.latents_VCHW, found.teacher_VNZ, *texts) if array is not None}
    if kinds != {BITS[source.precision]}:
        raise ValueError(f"numbers of {kinds}; expected {source.precision}")
    if any(array is not None and array.ndim != 2 for array in texts):
        raise ValueError("features of captions that are no [tokens, width] or [captions, width]")
    if found.streams and len(found.streams) != source.num_streams:
        raise ValueError(f"captions by {len(found.streams)} encoders; expected {source.num_streams}")
    expected = (source.num_views, *source.latent_shape(size))
    if found.latents_VCHW.shape != expected:
        raise ValueError(f"latents of shape {tuple(found.latents_VCHW.shape)}; expected {expected}")
    shape = None if found.teacher_VNZ is None else found.teacher_VNZ.shape
    wanted = (source.num_views, *source.teacher_shape(size)) if source.teacher else None
    if shape != wanted:
        raise ValueError(f"features for alignment of shape {shape}; expected {wanted}")
    return found


def _join(arrays: dict[str, np.ndarray]) -> SampleFeatures:
    """The arrays of a member by what they are of. Raises: KeyError, TypeError for others than those."""
    number = sum(name.partition(".")[0] == "tokens_LT" for name in arrays)
    streams = tuple(
        StoredStream(
            tokens_LT=arrays.pop(stream_name("tokens_LT", n)),
            lengths_K=arrays.pop(stream_name("lengths_K", n)),
            pooled_KP=arrays.pop(stream_name("pooled_KP", n), None),
        )
        for n in range(number)
    )
    return SampleFeatures(**arrays, streams=streams)
