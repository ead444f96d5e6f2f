"""The sizes of a data set's images, read once from their headers and kept in a file beside each shard, and
their buckets.

Of cached features, those of the pictures that they were made from. B buckets, R images of a shard, Z =
(height, width).
"""

import logging
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from diffmoe_scale.data.features.format import stored_original
from diffmoe_scale.data.features.source import FEATURE_SUFFIX
from diffmoe_scale.data.order.buckets import cropped_share, nearest_bucket
from diffmoe_scale.data.reading.decoder import chosen_suffix
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import Size, stored_size
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import ShardIndex, Span
from diffmoe_scale.data.shards.sidecar import read_arrays, write_arrays
from diffmoe_scale.recent import RecentlyUsed
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

HEADER_BYTES = 1 << 14
SIDECAR = ".sizes"
REMEMBERED_SHARDS = 128
NO_SIZE = Size(0, 0)


class ImageBuckets:
    """The images of each shard by bucket. Pickles without what can be read again."""

    def __init__(
        self,
        catalog: ShardCatalog,
        aspects: Sequence[float],
        *,
        ratios: Sequence[float],
        has_features: bool = False,
    ) -> None:
        """`aspects` choose the bucket; `ratios` are width over height of what images are cut to there, in
        whole steps."""
        self.catalog = catalog
        self.has_features = has_features
        self.aspects = tuple(aspects)
        self.counts = [[0] * len(catalog.paths) for _ in aspects]
        """Images of each bucket in each shard."""
        self.num_unknown = 0
        """Images without a readable header, in the bucket that a square is in."""
        self.cropped = self.cropped_to_square = 0.0
        """Mean share of an image's pixels that is cut off, in its bucket and without buckets."""
        self._kept: dict[int, np.ndarray] = {}
        self._rows: RecentlyUsed[int, list[np.ndarray]] = RecentlyUsed(REMEMBERED_SHARDS)
        # As in ShardCatalog: ranks that start together each read some shards' headers and take the others'
        # files.
        for shard in random.SystemRandom().sample(range(len(catalog.paths)), len(catalog.paths)):
            self._register(shard, ratios)
        self.cropped /= sum(catalog.counts)
        self.cropped_to_square /= sum(catalog.counts)
        if self.num_unknown:
            logger.warning(
                "no readable size: %s; kept in its place, in the bucket of squares",
                counted(self.num_unknown, "image"),
            )

    def describe(self) -> None:
        """Log how much of the pictures is cut off."""
        logger.info(
            "buckets cut off %.1f %% of the pixels; squares would %.1f %%",
            100 * self.cropped,
            100 * self.cropped_to_square,
        )

    def rows(self, shard: int) -> list[np.ndarray]:
        """The rows of a shard's images in each bucket, rising."""
        return self._rows.get(shard, self._split)

    def bucket(self, shard: int, row: int) -> int:
        """The bucket of one image."""
        return next(bucket for bucket, rows in enumerate(self.rows(shard)) if row in rows)

    def _register(self, shard: int, ratios: Sequence[float]) -> None:
        sizes_RZ = self._sizes(shard)
        bucket_R = nearest_bucket(sizes_RZ, self.aspects)
        for bucket, count in enumerate(np.bincount(bucket_R, minlength=len(self.aspects)).tolist()):
            self.counts[bucket][shard] = count
        self.num_unknown += int((sizes_RZ == 0).any(axis=1).sum())
        self.cropped += float(cropped_share(sizes_RZ, np.asarray(ratios)[bucket_R]).sum())
        self.cropped_to_square += float(cropped_share(sizes_RZ, 1.0).sum())

    def _split(self, shard: int) -> list[np.ndarray]:
        bucket_R = nearest_bucket(self._sizes(shard), self.aspects)
        return [np.flatnonzero(bucket_R == bucket) for bucket in range(len(self.aspects))]

    def _sizes(self, shard: int) -> np.ndarray:
        """[R, 2] uint32, from memory, from the file beside the shard, or from the images."""
        if shard in self._kept:
            return self._kept[shard]
        sizes_RZ, is_written = find_sizes(self.catalog, shard, has_features=self.has_features)
        if not is_written:
            self._kept[shard] = sizes_RZ
            logger.info(
                "the image sizes of shard %s are kept in memory and read anew at each start; "
                "data.index_folder names a folder for them",
                self.catalog.paths[shard],
            )
        return sizes_RZ


def find_sizes(catalog: ShardCatalog, shard: int, *, has_features: bool) -> tuple[np.ndarray, bool]:
    """[R, 2] uint32 from the file beside the shard, or from the images; and whether a file has them now.

    Raises: OSError if a URL cannot be read.
    """
    index = catalog.index(shard)
    stamp = catalog.stamp(shard) | {"index": _digest(index)}
    found = catalog.find_sidecar(shard, lambda place: _read(place, stamp, len(index)), kind=SIDECAR)
    if found is not None:
        return found, True
    # Files of its own, closed with it: an open copy takes its disk space even when it has left.
    sizes_RZ = scan_sizes(index, shard, ShardFiles(catalog), has_features=has_features)
    return sizes_RZ, any(_write(place, sizes_RZ, stamp) for place in catalog.sidecar_places(shard, SIDECAR))


def scan_sizes(index: ShardIndex, shard: int, files: ShardFiles, *, has_features: bool) -> np.ndarray:
    """Upright height and width of each image of a shard, [R, 2] uint32, from its header; 0 where that cannot
    be read.

    Raises: OSError if the shard cannot be opened.
    """
    sizes_RZ = np.zeros((len(index), 2), dtype=np.uint32)
    if len(index):
        # Here, else each of its images would be one of unknown size.
        files.read(shard, Span(0, 0))
    for row in range(len(index)):
        members = index.members(row)
        suffix = chosen_suffix(members, has_features=has_features)
        # By the member and not by the set: sizes are kept, also where what says that it is a set of features
        # comes only later.
        stored = stored_original if suffix == FEATURE_SUFFIX else stored_size
        sizes_RZ[row] = _read_size(files, shard, members[suffix], stored) if suffix in members else NO_SIZE
    return sizes_RZ


def _read_size(files: ShardFiles, shard: int, span: Span, stored: Callable[[bytes], Size]) -> Size:
    # Some headers lie behind a thumbnail, some formats have theirs at the end.
    for size in {min(span.size, HEADER_BYTES): None, span.size: None}:
        try:
            return stored(files.read(shard, Span(span.offset, size)))
        except (
            Exception
        ):  # of a dozen types, as in decoding; the image is counted and named when its turn comes
            continue
    return NO_SIZE


def _digest(index: ShardIndex) -> str:
    """What the sizes are compared with to find out that they are of another shard."""
    content = index.keys.tobytes() + index.offset.tobytes() + index.size.tobytes()
    return blake2b(content, digest_size=16).hexdigest()


def _read(place: Path, stamp: dict[str, int | str], num_images: int) -> np.ndarray | None:
    """The sizes in a file, or None for one that is absent, damaged or another shard's."""
    found = read_arrays(place, stamp)
    sizes_RZ = None if found is None else found[1].get("sizes")
    is_sound = sizes_RZ is not None and sizes_RZ.dtype == np.uint32 and sizes_RZ.shape == (num_images, 2)
    return sizes_RZ if is_sound else None


def _write(place: Path, sizes_RZ: np.ndarray, stamp: dict[str, int | str]) -> bool:
    """Whether the file could be written."""
    try:
        write_arrays(place, stamp, {"sizes": sizes_RZ})
    except OSError:
        return False
    return True
