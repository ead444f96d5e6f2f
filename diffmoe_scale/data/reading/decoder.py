"""From the bytes of a sample's member to what is trained on: of pictures, or of cached features."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from diffmoe_scale.data.features.format import Latents, SampleFeatures, unpack_sample
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, FeatureSet, StoredCaption
from diffmoe_scale.data.reading.pictures import Picture, Size, decode_image
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES


def chosen_suffix(members: Collection[str], *, has_features: bool) -> str:
    """The member of a sample that is read: of several pictures the first in the list of suffixes; in a set of
    pictures a sample may have features and no picture."""
    return (
        FEATURE_SUFFIX
        if has_features
        else next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), FEATURE_SUFFIX)
    )


@dataclass(frozen=True)
class Decoded:
    """A picture, or its latents; with them the features of its captions where those are stored."""

    picture: Picture | None = None
    latents: Latents | None = None
    features: SampleFeatures | None = None
    weights: tuple[float, ...] = ()
    """By which one of the stored captions is drawn."""

    def caption(self, number: int) -> tuple[StoredCaption, ...]:
        """By each encoder. Raises: ValueError for numbers that are not finite."""
        assert self.features is not None
        return self.features.caption(number)


class Decoder(Protocol):
    """What a set of shards holds, and how it is read."""

    @property
    def has_features(self) -> bool:
        """Whether it reads cached features."""

    @property
    def failure(self) -> str:
        """Kind of Failure of bytes that cannot be decoded, unless the error says more."""

    def decode(self, data: bytes, size: Size, *, is_flipped: bool, oddities: set[str]) -> Decoded:
        """A member's content, for an image of a size; `oddities` is filled with kinds of NOTES.

        Raises: BadPicture, or one of a dozen other errors for broken data.
        """


@dataclass(frozen=True)
class PictureDecoder:
    """Decodes and crops."""

    background: tuple[int, int, int]
    """Behind transparent pixels."""
    has_features: bool = False
    failure: str = "corrupt"

    def decode(self, data: bytes, size: Size, *, is_flipped: bool, oddities: set[str]) -> Decoded:
        # Pillow raises a dozen types for broken data, among them SyntaxError and struct.error.
        return Decoded(
            decode_image(
                data, size=size, background=self.background, is_flipped=is_flipped, oddities=oddities
            )
        )


@dataclass(frozen=True)
class FeatureDecoder:
    """Unpacks what tools/cache_features.py wrote."""

    features: FeatureSet
    has_features: bool = True
    failure: str = "features"

    def decode(self, data: bytes, size: Size, *, is_flipped: bool, oddities: set[str]) -> Decoded:
        found = unpack_sample(data, self.features.source, size)
        latents = found.latents(int(is_flipped))
        if not self.features.empty:
            return Decoded(latents=latents)
        weights = tuple(found.caption_weights())
        if weights:
            self._check_widths(found)
        return Decoded(latents=latents, features=found, weights=weights)

    def _check_widths(self, found: SampleFeatures) -> None:
        for stream, empty in zip(found.streams, self.features.stored_empty, strict=True):
            widths = stream.tokens_LT.shape[1], 0 if stream.pooled_KP is None else stream.pooled_KP.shape[1]
            if widths != empty.widths:
                raise ValueError(f"tokens and pooled features of widths {widths}; expected {empty.widths}")
