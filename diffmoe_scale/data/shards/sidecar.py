"""What was found in a shard, in files beside it: a cache that is made anew if anything about it is wrong.

Such a file is numpy's archive of a header (JSON, as bytes) and arrays, and behind it the checksum of both.
"""

import errno
import io
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any  # Any: JSON headers and numpy's open archives

import numpy as np

from diffmoe_scale.data.shards.archive import Problem
from diffmoe_scale.data.shards.index import ShardIndex
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)


SIDECAR_FORMAT = 3


CHECKSUM_BYTES = 32


INDEX_ARRAYS = {"keys": "S", "first_member": "i", "suffix": "i", "offset": "i", "size": "i"}
"""Arrays of an index with numpy's kind of their values."""


def index_places(path: Path, index_folder: Path | None) -> list[Path]:
    """Files an index may be in: beside the shard, then in the folder for shards that cannot be written
    beside."""
    beside = path.with_name(path.name + INDEX_SUFFIX)
    if index_folder is None:
        return [beside]
    mark = blake2b(str(path.resolve()).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return [beside, index_folder / f"{path.name}.{mark}{INDEX_SUFFIX}"]


def stamp_of(path: Path, *, is_copy: bool = False) -> dict[str, int | str]:
    """What an index is compared with to find out that its shard has changed, or that it is another's.

    Of the copy of a URL (`is_copy`) neither size nor time are known beforehand.
    """
    stamp: dict[str, int | str] = {"format": SIDECAR_FORMAT, "shard": path.name}
    if is_copy:
        return stamp
    status = path.stat()
    return stamp | {"shard_size": status.st_size, "shard_mtime_ns": status.st_mtime_ns}


def write_index(
    index: ShardIndex, path: Path, places: Sequence[Path], stamp: dict[str, int | str]
) -> Path | None:
    """Write an index so that it appears complete or not at all; the place, or None where nothing could be
    written. `stamp` has the size of the shard."""
    header = stamp | {
        "suffixes": index.suffixes,
        "problems": [asdict(problem) for problem in index.problems],
    }
    arrays = {name: getattr(index, name) for name in INDEX_ARRAYS}
    reasons = []
    for place in places:
        try:
            write_arrays(place, header, arrays)
            return place
        except OSError as error:
            reasons.append(str(error))
    logger.info(
        "the index of shard %s is kept in memory and made anew at each start (%s); "
        "data.index_folder names a folder for it",
        path,
        "; ".join(reasons),
    )
    return None


def read_index(place: Path, stamp: dict[str, int | str]) -> tuple[ShardIndex, int] | None:
    """The index in a file and the size of its shard, or None if the file is absent, damaged or has not that
    `stamp` (is older than its shard)."""
    found = read_arrays(place, stamp)
    if found is None:
        return None
    header, arrays = found
    try:
        index = ShardIndex(
            suffixes=header["suffixes"],
            problems=[Problem(**problem) for problem in header["problems"]],
            **arrays,
        )
        return (index, header["shard_size"]) if _is_sound(index, header["shard_size"]) else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        # The checksum is right, and the content is no index: another program wrote it.
        return None


def _is_sound(index: ShardIndex, shard_size: int) -> bool:
    """Whether every span of an index lies inside its shard, and every sample has its members."""
    arrays = {name: getattr(index, name) for name in INDEX_ARRAYS}
    if any(arrays[name].dtype.kind != kind or arrays[name].ndim != 1 for name, kind in INDEX_ARRAYS.items()):
        return False
    first, offset, size = index.first_member, index.offset, index.size
    is_fit = len(first) == len(index) + 1 and len(index.suffix) == len(offset) == len(size) == first[-1]
    is_inside = (offset >= 0) & (size >= 0) & (size <= shard_size) & (offset <= shard_size - size)
    is_named = (index.suffix >= 0) & (index.suffix < len(index.suffixes))
    texts = [*index.suffixes, *(text for problem in index.problems for text in (problem.kind, problem.name))]
    return bool(
        is_fit
        and first[0] == 0
        and (np.diff(first) > 0).all()
        and is_inside.all()
        and is_named.all()
        and all(isinstance(text, str) for text in texts)
    )


def write_arrays(place: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """A file of arrays and a header, which appears complete or not at all. Raises: OSError, leaving
    nothing."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
    np.savez(buffer, **named)
    content = buffer.getvalue()
    place.parent.mkdir(parents=True, exist_ok=True)
    _respect_mode(place.parent)
    replace_file(place, content + _checksum(content))


def read_arrays(
    place: Path, stamp: dict[str, int | str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Header and arrays of a file, or None if it is absent, damaged or its header has not that `stamp`."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    content = data[:-CHECKSUM_BYTES]
    # Before anything is made of the bytes: a damaged archive may ask for any amount of memory.
    if _checksum(content) != data[-CHECKSUM_BYTES:]:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = parse_json(arrays.pop("header").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (header, arrays) if isinstance(header, dict) and stamp.items() <= header.items() else None


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def _respect_mode(folder: Path) -> None:
    """Raises: PermissionError for a folder that nobody may write into. Root, usual in containers, could all
    the same."""
    if folder.stat().st_mode & 0o222 == 0:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
