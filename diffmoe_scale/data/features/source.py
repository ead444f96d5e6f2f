"""Samples that are computed before training: an autoencoder's latents and a frozen text encoder's features.

V views of a picture (as it is and, in sets made for flipping, mirrored), C H W latents, K captions of a
sample, L tokens, T their width, P pooled width. A sample's member `KEY.safetensors` holds `latents_VCHW`,
`origin_Z` (height and width of the original picture, rows above and columns left of what was kept of it) and,
unless the text encoder is trained along, `tokens_LT` of all captions one after another without padding,
`lengths_K`, `pooled_KP` and, where K > 1, `weights_K` by which a caption is drawn (those of
`data.caption_weights` when the features were made). `features.safetensors` beside the shards says what made
them.
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

FEATURE_SUFFIX = "safetensors"


SET_FILE = "features.safetensors"


PRECISIONS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


BITS: dict[str, np.dtype[Any]] = {"bf16": np.dtype(np.uint16), "fp8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class CaptionFeatures:
    """Features of one caption: its valid tokens alone."""

    tokens_LT: Tensor
    pooled_P: Tensor

    @functools.cached_property
    def stored(self) -> "StoredCaption":
        """Of features in a stored format."""
        bits = {1: torch.uint8, 2: torch.uint16}[self.pooled_P.itemsize]
        return StoredCaption(self.tokens_LT.view(bits).numpy(), self.pooled_P.view(bits).numpy())


@dataclass(frozen=True)
class StoredCaption:
    """The bits of CaptionFeatures in the stored format."""

    tokens_LT: np.ndarray
    pooled_P: np.ndarray


@dataclass(frozen=True)
class FeatureSource:
    """What features depend on; two sets of equal sources can be mixed."""

    autoencoder: str
    """Fingerprint of the autoencoder."""
    text: str
    """Fingerprint of the text encoder; "" where captions are not encoded."""
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

    def image_size_of(self, original: Size) -> Size:
        """Of the image that a picture of that size was cut to."""
        if not self.aspects:
            return Size(self.image_size, self.image_size)
        (bucket,) = nearest_bucket(np.array([original]), self.aspects)
        return bucket_size(self.aspects[bucket], resolution=self.image_size, step=self.step)

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """C, H, W of the latents of an image."""
        return self.channels, size.height // self.factor, size.width // self.factor


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of shards: their source, and the features of the empty caption (None without
    text)."""

    source: FeatureSource
    empty: CaptionFeatures | None

    def save(self, folder: Path) -> None:
        tensors = (
            {}
            if self.empty is None
            else {
                "tokens_LT": self.empty.tokens_LT.contiguous(),
                "pooled_P": self.empty.pooled_P.contiguous(),
            }
        )
        # As bytes: `save_file` would map the file, which another rank may be writing too.
        (folder / SET_FILE).write_bytes(
            safetensors.torch.save(tensors, metadata={"source": json.dumps(asdict(self.source))})
        )


def differences(found: FeatureSource, expected: FeatureSource) -> str:
    pairs = [
        (name, value, asdict(expected)[name])
        for name, value in asdict(found).items()
        if value != asdict(expected)[name]
    ]
    return ", ".join(
        f"{name} {found or 'none'!r} instead of {wanted or 'none'!r}" for name, found, wanted in pairs
    )
