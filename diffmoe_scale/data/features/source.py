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
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any  # numpy's types

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.order.buckets import bucket_size, nearest_bucket
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.shards.remote import RemoteShards, is_url
from diffmoe_scale.encoders.text.features import TextFeatures

FEATURE_SUFFIX = "safetensors"
SET_FILE = "features.safetensors"
PRECISIONS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
BITS: dict[str, np.dtype[Any]] = {"bf16": np.dtype(np.uint16), "fp8": np.dtype(np.uint8)}
NUMPY_TYPES = {
    "BF16": BITS["bf16"],
    "F8_E4M3": BITS["fp8"],
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
}
"""safetensors' types in numpy; of those that it has not, the bits."""


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


@dataclass(frozen=True)
class SetFile:
    """The file that says what made the features in the shards of a folder."""

    name: str
    """For messages: a path, or the URL that it has; of `pipe:` shards their own."""
    place: Path | None
    """Of a URL's, where it is kept; None for `pipe:` shards."""


def set_file(shard: Path, remote: RemoteShards | None = None) -> SetFile:
    """The one of a shard, whether it exists or not."""
    if remote is None or shard not in remote.urls:
        place = shard.with_name(SET_FILE)
        return SetFile(str(place), place)
    url = remote.beside(shard, SET_FILE)
    return SetFile(url, remote.room(url) / SET_FILE) if url else SetFile(remote.urls[shard], None)


def load_feature_set(file: SetFile) -> FeatureSet:
    """The set of a folder's shards. Raises: ValueError where the file is missing or unreadable."""
    if file.place is None:
        raise ValueError(
            f"{file.name} gives features, but a command names no folder to fetch {SET_FILE} from; "
            "name the shards by URLs of http, s3 or gs, or copy them and that file to a local folder"
        )
    try:
        with safetensors.safe_open(file.place, "pt") as archive:
            told = dict(json.loads(archive.metadata()["source"]))
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118  # no dictionary
        empty = CaptionFeatures(**tensors) if tensors else None
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        kept = "" if file.name == str(file.place) else f", kept as {file.place} until that is removed,"
        raise ValueError(
            f"{file.name}{kept} is missing or damaged ({error}); it belongs beside the shards that tools/cache_features.py wrote"
        ) from error
    expected = [field.name for field in fields(FeatureSource)]
    if told.keys() != set(expected):
        raise ValueError(
            f"{file.name} tells {', '.join(told)}; expected {', '.join(expected)}: the features were made by another version of "
            "tools/cache_features.py; make them anew"
        )
    return FeatureSet(FeatureSource(**told | {"aspects": tuple(told["aspects"])}), empty)


def find_feature_set(shards: Sequence[Path], remote: RemoteShards | None = None) -> FeatureSet | None:
    """What made the features in some shards, told by a file of each folder; None for shards of pictures. A
    URL's is fetched once and kept.

    Raises: ValueError where not all come from the same source.
    """
    files = list(dict.fromkeys(set_file(path, remote) for path in shards))
    for file in files:
        if remote is not None and is_url(file.name) and file.place is not None and not file.place.is_file():
            remote.fetch_file(file.name, file.place, otherwise="the shards beside it are taken for pictures")
    if not any(file.place is not None and file.place.is_file() for file in files):
        return None
    (first, found), *others = ((file, load_feature_set(file)) for file in files)
    for file, other in others:
        if other.source != found.source:
            raise ValueError(
                f"the features of {first.name} and {file.name} cannot be mixed: {_differences(found.source, other.source)}; cache them anew alike"
            )
    return found


def bucket_fields(buckets: BucketConfig) -> tuple[tuple[float, ...], int]:
    """`aspects` and `step` of the FeatureSource of a set that is made with these buckets."""
    return (buckets.aspects, buckets.step) if buckets.enabled else ((), 0)


def check_shapes(found: FeatureSource, *, image_size: int, buckets: BucketConfig) -> None:
    """Raises: ValueError if training would cut pictures to other sizes than those that the features in its
    shards are of."""
    aspects, step = bucket_fields(buckets)
    _refuse_other(
        found,
        replace(found, image_size=image_size, aspects=aspects, step=step),
        "model.image_size and buckets",
    )
    is_one = all(resolution == image_size for _, resolution in buckets.resolutions)
    require(
        is_one,
        "buckets.resolutions",
        buckets.resolutions,
        f"none but model.image_size ({image_size}): features are cached at that resolution alone",
    )


def check_features(found: FeatureSource, *, autoencoder: str, text: str, is_flipped: bool) -> None:
    """Raises: ValueError if training would compute other features of its images than those in its shards.

    `text` is the fingerprint of the run's frozen text encoder, or "" for one that is trained along, and in
    class mode.
    """
    # Without features of captions the denoiser encodes them itself.
    _refuse_other(
        found,
        replace(found, autoencoder=autoencoder, text=text if found.text else ""),
        "autoencoder and text",
    )
    require(
        not is_flipped or found.num_views == 2,
        "data.horizontal_flip",
        is_flipped,
        "false: the shards hold no features of mirrored pictures",
    )


def _refuse_other(found: FeatureSource, expected: FeatureSource, settings: str) -> None:
    if found != expected:
        raise ValueError(
            f"the shards of data.train or data.validation hold features of other settings: {_differences(found, expected)}; "
            f"set {settings} as they were, or make the features anew by tools/cache_features.py"
        )


def _differences(found: FeatureSource, expected: FeatureSource) -> str:
    pairs = [
        (name, value, asdict(expected)[name])
        for name, value in asdict(found).items()
        if value != asdict(expected)[name]
    ]
    return ", ".join(
        f"{name} {found or 'none'!r} instead of {wanted or 'none'!r}" for name, found, wanted in pairs
    )


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
        """Raises: ValueError, IndexError where they are not stored."""
        height, width, top, left = self.origin_Z.tolist()
        return Latents(self.latents_VCHW[view], Size(height, width), (top, left))

    def caption_weights(self) -> list[float]:
        """By which a caption is drawn; empty where there is none. Raises: ValueError where the tensors do not
        fit each other."""
        number = 0 if self.lengths_K is None else len(self.lengths_K)
        weights = [1.0] * number if self.weights_K is None else self.weights_K.tolist()
        rows = (
            (0, 0)
            if self.tokens_LT is None or self.pooled_KP is None
            else (len(self.tokens_LT), len(self.pooled_KP))
        )
        expected = (0 if self.lengths_K is None else sum(self.lengths_K.tolist()), number)
        if rows != expected or len(weights) != number:
            raise ValueError(
                f"{rows[0]} tokens and {rows[1]} pooled features of {number} captions; expected {expected}"
            )
        return weights

    def caption(self, number: int) -> StoredCaption:
        """Features of caption `number` of those that have weights."""
        assert self.tokens_LT is not None and self.lengths_K is not None and self.pooled_KP is not None
        lengths = self.lengths_K.tolist()
        first = sum(lengths[:number])
        return StoredCaption(self.tokens_LT[first : first + lengths[number]], self.pooled_KP[number])


def stored_original(data: bytes) -> Size:
    """Of the picture that a member was made from; the beginning of its bytes may do. Raises: KeyError,
    TypeError or ValueError for other bytes."""
    place = _places(_header(data))["origin_Z"]
    height, width = np.frombuffer(data, place.dtype, count=2, offset=place.offset).tolist()
    return Size(height, width)


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
    """Cached: those of most samples are the same. Raises: KeyError, TypeError or ValueError for other bytes."""
    return {
        name: _Place(
            NUMPY_TYPES[told["dtype"]],
            tuple(told["shape"]),
            math.prod(told["shape"]),
            len(header) + told["data_offsets"][0],
        )
        for name, told in json.loads(header[8:]).items()
    }


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
    return TextFeatures(
        _to_bf16(tokens_BLT, precision),
        mask_BL,
        _to_bf16(np.stack([caption.pooled_P for caption in captions]), precision),
    )


def _to_bf16(bits: np.ndarray, precision: str) -> Tensor:
    """bf16 holds both stored formats exactly; all zeros are zero in both."""
    return torch.from_numpy(bits).view(PRECISIONS[precision]).to(torch.bfloat16)
