"""Samples that are computed before training: an autoencoder's latents and frozen text encoders' features.

V views of a picture (as it is and, in sets made for flipping, mirrored), C H W latents, K captions of a
sample, L tokens, T their width, P pooled width. A sample's member `KEY.safetensors` holds `latents_VCHW`,
`origin_Z` (height and width of the original picture, rows above and columns left of what was kept of it) and,
where K > 1, `weights_K` by which a caption is drawn (those of `data.caption_weights` when the features were
made). Of the first frozen text encoder it holds `tokens_LT` of all captions one after another without
padding, `lengths_K` and, if the encoder gives one vector a caption, `pooled_KP`; of the second `tokens_LT.1`
and so on. Features for alignment are `teacher_VNZ`, N patches of width Z in rows. `features.safetensors`
beside the shards says what made them.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # numpy's types

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from diffmoe_scale.data.order.buckets import bucket_size, nearest_bucket
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.files import replace_file

FEATURE_SUFFIX = "safetensors"


SET_FILE = "features.safetensors"


PRECISIONS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


BITS: dict[str, np.dtype[Any]] = {"bf16": np.dtype(np.uint16), "fp8": np.dtype(np.uint8)}


TEACHER = ("teacher", "teacher_width", "teacher_patch")
"""Fields of FeatureSource that older sets lack."""


@dataclass(frozen=True)
class CaptionFeatures:
    """Features of one caption by one encoder: its valid tokens alone."""

    tokens_LT: Tensor
    pooled_P: Tensor | None

    @functools.cached_property
    def stored(self) -> "StoredCaption":
        """Of features in a stored format."""
        bits = {1: torch.uint8, 2: torch.uint16}[self.tokens_LT.itemsize]
        pooled_P = None if self.pooled_P is None else self.pooled_P.view(bits).numpy()
        return StoredCaption(self.tokens_LT.view(bits).numpy(), pooled_P)


@dataclass(frozen=True)
class StoredCaption:
    """The bits of CaptionFeatures in the stored format."""

    tokens_LT: np.ndarray
    pooled_P: np.ndarray | None

    @property
    def widths(self) -> tuple[int, int]:
        """Of tokens and of the pooled features, 0 without these."""
        return self.tokens_LT.shape[1], 0 if self.pooled_P is None else len(self.pooled_P)


@dataclass(frozen=True)
class FeatureSource:
    """What features depend on; two sets of equal sources can be mixed."""

    autoencoder: str
    """Fingerprint of the autoencoder."""
    text: str
    """Fingerprints of the frozen text encoders, in the order of the config, with spaces between; "" where
    captions are not encoded."""
    channels: int
    """Of the latents."""
    factor: int
    """By which the latents are smaller than the image, on each side."""
    image_size: int
    """Resolution of the images: the side of squares, `model.image_size`."""
    aspects: tuple[float, ...]
    """Width over height of each bucket, `buckets.aspects`; empty for a set of squares."""
    step: int
    """Sides of a bucket's images are multiples of it, `buckets.step`; 0 for a set of squares."""
    num_views: int
    """1, or 2 with the mirrored picture."""
    precision: str
    """Stored format, a key of PRECISIONS."""
    teacher: str = ""
    """Fingerprint of the encoder of pictures for alignment; "" without its features."""
    teacher_width: int = 0
    """Of its features."""
    teacher_patch: int = 0
    """They are on the grid of patches of so many latent pixels, `model.patch_size`."""

    @property
    def num_streams(self) -> int:
        """Frozen text encoders."""
        return len(self.text.split())

    def image_size_of(self, original: Size) -> Size:
        """Of the image that a picture of that size was cut to."""
        if not self.aspects:
            return Size(self.image_size, self.image_size)
        (bucket,) = nearest_bucket(np.array([original]), self.aspects)
        return bucket_size(self.aspects[bucket], resolution=self.image_size, step=self.step)

    def teacher_shape(self, size: Size) -> tuple[int, int]:
        """N, Z of the features for alignment of an image."""
        _, height, width = self.latent_shape(size)
        return height // self.teacher_patch * (width // self.teacher_patch), self.teacher_width

    def stated(self) -> dict[str, Any]:
        """Its fields; without alignment as sets had them before there was any."""
        fields = asdict(self)
        return fields if self.teacher else {name: fields[name] for name in fields if name not in TEACHER}

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """C, H, W of the latents of an image."""
        return self.channels, size.height // self.factor, size.width // self.factor


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of shards: their source, and the features of the empty caption by each encoder
    (none without text)."""

    source: FeatureSource
    empty: tuple[CaptionFeatures, ...] = ()

    @functools.cached_property
    def stored_empty(self) -> tuple[StoredCaption, ...]:
        return tuple(features.stored for features in self.empty)

    def save(self, folder: Path) -> None:
        tensors = {}
        for number, features in enumerate(self.empty):
            tensors[stream_name("tokens_LT", number)] = features.tokens_LT.contiguous()
            if features.pooled_P is not None:
                tensors[stream_name("pooled_P", number)] = features.pooled_P.contiguous()
        source = json.dumps(self.source.stated())
        # As bytes: `save_file` would map the file, which another rank may be writing too.
        replace_file(folder / SET_FILE, safetensors.torch.save(tensors, metadata={"source": source}))


def stream_name(name: str, number: int) -> str:
    """What a tensor of an encoder is called: of the first as sets with one encoder always did."""
    return f"{name}.{number}" if number else name


def differences(found: FeatureSource, expected: FeatureSource) -> str:
    """What differs, with both values; "" if nothing does."""
    pairs = [
        (name, value, _parts(expected)[name])
        for name, value in _parts(found).items()
        if value != _parts(expected).get(name, value)
    ]
    return ", ".join(
        f"{name} {found or 'none'!r} instead of {wanted or 'none'!r}" for name, found, wanted in pairs
    )


def _parts(source: FeatureSource) -> dict[str, object]:
    """Its fields; of several text encoders each by its number."""
    fields = asdict(source)
    names = source.text.split()
    if len(names) > 1:
        fields["text"] = f"{len(names)} encoders"
        fields |= {f"text encoder {number}": name for number, name in enumerate(names)}
    return fields
