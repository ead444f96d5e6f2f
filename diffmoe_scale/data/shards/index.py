"""Where each sample of a tar shard lies: made by one scan, kept in a file beside the shard."""

import errno
import glob
import io
import json
import logging
import os
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar  # Any: JSON headers and numpy's open archives

import numpy as np
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from diffmoe_scale.config.check import RunError
from diffmoe_scale.data.features.source import FEATURE_SUFFIX
from diffmoe_scale.data.shards.archive import Problem, iterate_members
from diffmoe_scale.data.shards.remote import RemoteShards, is_url
from diffmoe_scale.files import replace_file
from diffmoe_scale.recent import RecentlyUsed

logger = logging.getLogger(__name__)

FORMAT = 2
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2")
INDEX_SUFFIX = ".index.npz"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
REMEMBERED_INDEXES = 128
NAMED_PROBLEMS = 20
# Of webdataset's reader (tariterators.tar_file_iterator): such members belong to no sample.
META_NAME = re.compile(r"__[^/]*__($|/)")

Found = TypeVar("Found")


class Span(NamedTuple):
    """`size` bytes of a shard from `offset` on."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard by row: sample r has members first_member[r] to first_member[r + 1]."""

    keys: np.ndarray
    suffixes: list[str]
    first_member: np.ndarray
    suffix: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return bytes(self.keys[row]).decode("utf-8", "replace")

    def members(self, row: int) -> dict[str, Span]:
        """Suffix (lower case, no dot) to place."""
        first, last = int(self.first_member[row]), int(self.first_member[row + 1])
        return {
            self.suffixes[self.suffix[m]]: Span(int(self.offset[m]), int(self.size[m]))
            for m in range(first, last)
        }


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
                logger.warning("shard %s holds no sample", path)
        if sum(self.counts) == 0:
            raise ValueError(
                f"no sample in {len(self.paths)} shards, the first is {self.paths[0]}; "
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

    def _register(self, shard: int, on_fetch: "Callable[[ShardCatalog, int], object] | None") -> None:
        header = self.find_sidecar(shard, lambda place: read_header(place, self._stamp(shard)))
        if header is not None:
            self.counts[shard], self.sizes[shard] = header["samples"], header["shard_size"]
            self.problems.update(problem["kind"] for problem in header["problems"])
            return
        try:
            index = self._scan(shard)
        except FileNotFoundError as error:
            raise ValueError(
                f"{error}; see data.train and data.validation for the names that are asked for"
            ) from error
        self.counts[shard] = len(index)
        self.problems.update(problem.kind for problem in index.problems)
        if (
            write_index(
                index,
                self.paths[shard],
                self.sidecar_places(shard),
                self._stamp(shard) | {"shard_size": self.sizes[shard]},
            )
            is None
        ):
            self._kept[shard] = index
        if on_fetch is not None and self.is_remote(shard):
            on_fetch(self, shard)

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

    def _stamp(self, shard: int) -> dict[str, int]:
        """What an index must say to belong to its shard; of a copy, the size is compared when it is opened."""
        return {"format": FORMAT} if self.is_remote(shard) else stamp_of(self.paths[shard])

    def _load(self, shard: int) -> ShardIndex:
        for place in self.sidecar_places(shard):
            index = read_index(place, self._stamp(shard))
            if index is not None and len(index) == self.counts[shard]:
                return index
        # Its index was removed or the shard was touched since the start: look again, but never go on with
        # other samples.
        index = self._scan(shard)
        if len(index) != self.counts[shard]:
            raise RunError(
                f"shard {self.paths[shard]} held {self.counts[shard]} samples when the run started and holds {len(index)} now; "
                "shards must not change during a run"
            )
        return index


def expand_patterns(patterns: Sequence[str], remote: RemoteShards | None = None) -> list[Path]:
    """Shard files of paths, globs and brace lists (webdataset's notation), in the order given and sorted
    within a glob.

    URLs are registered with `remote`, and stand as the places of their copies. The braces of a `pipe:`
    command are webdataset's, too.

    Raises: ValueError for a pattern without a file, and for a URL where there is no `remote`.
    """
    if not patterns:
        raise ValueError(
            "no shards are given; set data.train to tar files, for example [shards/train-*.tar] or ['shards/train-{000..099}.tar']"
        )
    paths: list[Path] = []
    for pattern in patterns:
        # Braces, too, may be those of a file's own name.
        for name in [pattern] if _is_file(pattern) else expand_urls(pattern):
            if is_url(name):
                if remote is None:
                    raise ValueError(
                        f"shard {name!r} is no local file; set data.cache_folder to a folder for copies (data.cache_gib limits it)"
                    )
                paths.append(remote.add(name))
                continue
            # A wide glob also matches the indexes that the first start wrote; read as shards they would
            # change the order of samples.
            matches = (match for match in glob.glob(name, recursive=True) if not match.endswith(INDEX_SUFFIX))
            # A file whose name holds [, ? or * is that file.
            is_pattern = glob.has_magic(name) and not _is_file(name)
            found = sorted(matches) if is_pattern else [name]
            if not found:
                raise ValueError(f"shard pattern {name!r} matches no file (working directory {os.getcwd()})")
            paths += map(Path, found)
    missing = [
        str(path) for path in paths if not path.is_file() and (remote is None or path not in remote.urls)
    ]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        folder = next(
            (f"; a folder's shards are named {name}/*.tar" for name in missing if Path(name).is_dir()), ""
        )
        raise ValueError(
            f"{len(missing)} of {len(paths)} shards do not exist or are no files: {named}{folder}"
        )
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        logger.info("%d shards are matched by more than one pattern and read once", len(paths) - len(unique))
    return unique


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except ValueError:
        # A name with a NUL.
        return False


def scan_shard(path: Path) -> ShardIndex:
    """The index of a shard from its headers. Samples without an image are left out; each loss is a Problem,
    and logged.

    Members that follow each other with the same name up to the first dot are one sample, as in webdataset.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return scan_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def scan_descriptor(descriptor: int, path: Path) -> ShardIndex:
    """The same of an open shard; `path` is for messages."""
    samples: list[tuple[str, dict[str, Span]]] = []
    problems = []
    _refuse_compressed(path, os.pread(descriptor, 8, 0))
    for item in iterate_members(descriptor):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        key, suffix = base_plus_ext(item.name)
        if key is None or META_NAME.match(item.name):
            continue
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if samples[-1][1].setdefault(suffix.lower(), span := Span(item.offset, item.size)) is not span:
            problems.append(Problem("member twice", item.name))
    problems += [
        Problem("no image", f"{key} (has {', '.join(sorted(members))})")
        for key, members in samples
        if not has_image(members)
    ]
    for problem in problems[:NAMED_PROBLEMS]:
        logger.warning("shard %s: %s: %s", path, problem.kind, problem.name)
    if len(problems) > NAMED_PROBLEMS:
        logger.warning(
            "shard %s: %d more problems, in all %s",
            path,
            len(problems) - NAMED_PROBLEMS,
            dict(Counter(problem.kind for problem in problems)),
        )
    return _pack([(key, members) for key, members in samples if has_image(members)], problems)


def has_image(members: dict[str, Span]) -> bool:
    """Whether there is a picture, or what an autoencoder made of one."""
    return any(suffix in members for suffix in (*IMAGE_SUFFIXES, FEATURE_SUFFIX))


def _refuse_compressed(path: Path, beginning: bytes) -> None:
    for mark, name in COMPRESSED.items():
        if beginning.startswith(mark):
            raise ValueError(
                f"shard {path} is compressed ({name}); samples are read by offset, so unpack it to a plain tar file"
            )


def _pack(samples: list[tuple[str, dict[str, Span]]], problems: list[Problem]) -> ShardIndex:
    suffixes = sorted({suffix for _, members in samples for suffix in members})
    number = {suffix: n for n, suffix in enumerate(suffixes)}
    flat = [
        (number[suffix], span.offset, span.size) for _, members in samples for suffix, span in members.items()
    ]
    columns = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    return ShardIndex(
        keys=np.array([key.encode("utf-8", "surrogateescape") for key, _ in samples], dtype=np.bytes_),
        suffixes=suffixes,
        first_member=np.cumsum([0] + [len(members) for _, members in samples], dtype=np.int64),
        suffix=columns[0].astype(np.int32),
        offset=columns[1].copy(),
        size=columns[2].copy(),
        problems=problems,
    )


def index_places(path: Path, index_folder: Path | None) -> list[Path]:
    """Files an index may be in: beside the shard, then in the folder for shards that cannot be written
    beside."""
    beside = path.with_name(path.name + INDEX_SUFFIX)
    if index_folder is None:
        return [beside]
    mark = blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()
    return [beside, index_folder / f"{path.name}.{mark}{INDEX_SUFFIX}"]


def stamp_of(path: Path) -> dict[str, int]:
    """What an index is compared with to find out that its shard has changed."""
    status = path.stat()
    return {"format": FORMAT, "shard_size": status.st_size, "shard_mtime_ns": status.st_mtime_ns}


def write_index(index: ShardIndex, path: Path, places: Sequence[Path], stamp: dict[str, int]) -> Path | None:
    """Write an index so that it appears complete or not at all; the place, or None where nothing could be
    written."""
    header = stamp | {
        "samples": len(index),
        "suffixes": index.suffixes,
        "problems": [asdict(problem) for problem in index.problems],
    }
    arrays = {name: getattr(index, name) for name in ("keys", "first_member", "suffix", "offset", "size")}
    reasons = []
    for place in places:
        try:
            write_arrays(place, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
            return place
        except OSError as error:
            reasons.append(str(error))
    logger.info(
        "the index of shard %s is kept in memory and made anew at each start (%s); data.index_folder names a folder for it",
        path,
        "; ".join(reasons),
    )
    return None


def write_arrays(
    place: Path, **arrays: Any
) -> None:  # arrays; numpy's stub takes an unpacked one for its own flag
    """numpy's archive of the arrays, which appears complete or not at all. Raises: OSError, leaving nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    place.parent.mkdir(parents=True, exist_ok=True)
    _respect_mode(place.parent)
    replace_file(place, buffer.getvalue())


def _respect_mode(folder: Path) -> None:
    """Raises: PermissionError for a folder that nobody may write into. Root, usual in containers, could all
    the same."""
    if folder.stat().st_mode & 0o222 == 0:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _open_index(place: Path, stamp: dict[str, int]) -> Any | None:
    """numpy's lazy archive and header of an index that belongs to the shard as it is now, or None."""
    try:
        archive = np.load(place, allow_pickle=False)
        header = json.loads(archive["header"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Absent or damaged: the scan makes it anew.
        return None
    return (archive, header) if stamp.items() <= header.items() else None


def read_header(place: Path, stamp: dict[str, int]) -> dict[str, Any] | None:
    """The header of an index file alone, or None if it is absent, damaged or has not that `stamp` (is older
    than its shard)."""
    opened = _open_index(place, stamp)
    return None if opened is None else opened[1]


def read_index(place: Path, stamp: dict[str, int]) -> ShardIndex | None:
    """The index in a file, or None if it is absent, damaged or has not that `stamp` (is older than its
    shard)."""
    opened = _open_index(place, stamp)
    if opened is None:
        return None
    archive, header = opened
    try:
        arrays = {name: archive[name] for name in ("keys", "first_member", "suffix", "offset", "size")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ShardIndex(
        suffixes=header["suffixes"], problems=[Problem(**problem) for problem in header["problems"]], **arrays
    )
