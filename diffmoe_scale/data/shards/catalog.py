"""All shards of a data set with the number of samples in each."""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from diffmoe_scale.config.check import RunError
from diffmoe_scale.data.shards.index import ShardIndex, scan_descriptor, scan_shard
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.data.shards.remote import RemoteShards
from diffmoe_scale.data.shards.sidecar import (
    index_places,
    read_index,
    stamp_of,
    write_index,
)
from diffmoe_scale.recent import RecentlyUsed
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


REMEMBERED_INDEXES = 128


Found = TypeVar("Found")


class ShardCatalog:
    """All shards of a data set with the number of samples in each; an index is read when it is needed."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        index_folder: Path | None = None,
        remote: RemoteShards | None = None,
        on_fetch: "Callable[[ShardCatalog, int], object] | None" = None,
    ) -> None:
        """`remote` knows which of the paths are copies of URLs; the index of one is its sidecar's, else of
        one pass over it, and `on_fetch` is given the shard then: its copy may leave when others come.

        Raises: ValueError if no shard holds a sample, or one cannot be indexed at all or is not on its
        server; OSError if a URL cannot be read.
        """
        self.paths = list(paths)
        self.index_folder = index_folder
        self.remote = remote
        self.counts = [0] * len(paths)
        self.sizes = [0] * len(paths)
        """Bytes of each shard."""
        self.problems: Counter[str] = Counter()
        self._recent: RecentlyUsed[int, ShardIndex] = RecentlyUsed(REMEMBERED_INDEXES)
        self._kept: dict[int, ShardIndex] = {}
        # Ranks that start together take the shards in different orders, so each scans some and reads the
        # others' indexes.
        for shard in random.SystemRandom().sample(range(len(paths)), len(paths)):
            self._register(shard, on_fetch)
        for path, count in zip(self.paths, self.counts, strict=True):
            if count == 0:
                logger.warning("shard %s holds no sample", clean_name(str(path)))
        if sum(self.counts) == 0:
            raise ValueError(
                f"no sample in {counted(len(self.paths), 'shard')}, the first is {self.paths[0]}; "
                f"problems found: {dict(self.problems) or 'none, they are empty'}"
            )

    def index(self, shard: int) -> ShardIndex:
        return self._kept[shard] if shard in self._kept else self._recent.get(shard, self._load)

    def open(self, shard: int) -> int:
        """A descriptor to read a shard with. Raises: OSError."""
        if self.remote is not None and self.is_remote(shard):
            return self.remote.open(self.paths[shard], size=self.sizes[shard])
        return os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)

    def is_remote(self, shard: int) -> bool:
        return self.remote is not None and self.paths[shard] in self.remote.urls

    def find_sidecar(
        self, shard: int, read: Callable[[Path], Found | None], *, kind: str = ""
    ) -> Found | None:
        """What `read` makes of the first file of a kind ("" is the index) that it finds good; of a copy, the
        one beside its URL is fetched."""
        places = self.sidecar_places(shard, kind)
        found = next((found for place in places if (found := read(place)) is not None), None)
        if found is None and self.remote is not None and self.is_remote(shard):
            (place,) = places
            url = self.remote.beside(self.paths[shard], place.name)
            return (
                read(place)
                if url
                and self.remote.fetch_file(url, place, otherwise="it is made from one pass over the shard")
                else None
            )
        return found

    def sidecar_places(self, shard: int, kind: str = "") -> list[Path]:
        """Files that what was found in a shard may be kept in; of a copy's, one that stays when the copy
        leaves."""
        path = self.paths[shard]
        named = path.with_name(path.name + kind)
        return (
            [path.parent.parent / f"{named.name}{INDEX_SUFFIX}"]
            if self.is_remote(shard)
            else index_places(named, self.index_folder)
        )

    def stamp(self, shard: int) -> dict[str, int | str]:
        """What a sidecar must say to belong to its shard; of a copy, the size is compared when it is
        opened."""
        return stamp_of(self.paths[shard], is_copy=self.is_remote(shard))

    def _register(self, shard: int, on_fetch: "Callable[[ShardCatalog, int], object] | None") -> None:
        found = self.find_sidecar(shard, lambda place: read_index(place, self.stamp(shard)))
        if found is not None:
            index, self.sizes[shard] = found
            self._count(shard, index)
            return
        try:
            index = self._scan(shard)
        except FileNotFoundError as error:
            raise ValueError(
                f"{error}; see data.train and data.validation for the names that are asked for"
            ) from error
        self._count(shard, index)
        stamp = self.stamp(shard) | {"shard_size": self.sizes[shard]}
        # A file without a sample is no shard perhaps: nothing is left beside it.
        places = self.sidecar_places(shard) if len(index) else []
        if not places or write_index(index, self.paths[shard], places, stamp) is None:
            self._kept[shard] = index
        if on_fetch is not None and self.is_remote(shard):
            on_fetch(self, shard)

    def _count(self, shard: int, index: ShardIndex) -> None:
        self.counts[shard] = len(index)
        self.problems.update(problem.kind for problem in index.problems)

    def _scan(self, shard: int) -> ShardIndex:
        """Scan a shard, and note its size."""
        path = self.paths[shard]
        if self.remote is None or not self.is_remote(shard):
            self.sizes[shard] = path.stat().st_size
            return scan_shard(path)
        descriptor = self.remote.open(path, size=self.sizes[shard] or None)
        try:
            self.sizes[shard] = os.fstat(descriptor).st_size
            return scan_descriptor(descriptor, path)
        finally:
            os.close(descriptor)

    def _load(self, shard: int) -> ShardIndex:
        for place in self.sidecar_places(shard):
            found = read_index(place, self.stamp(shard))
            if found is not None and len(found[0]) == self.counts[shard]:
                return found[0]
        # Its index was removed or the shard was touched since the start: look again, but never go on with
        # other samples.
        index = self._scan(shard)
        if len(index) != self.counts[shard]:
            raise RunError(
                f"shard {self.paths[shard]} held {counted(self.counts[shard], 'sample')} when the run "
                f"started and holds {len(index)} now; shards must not change during a run"
            )
        return index
