"""The index of a shard in a file beside it: a cache that is made anew whenever anything about it is wrong."""

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
from diffmoe_scale.files import replace_file

logger = logging.getLogger(__name__)


FORMAT = 2


INDEX_SUFFIX = ".index.npz"


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
        "the index of shard %s is kept in memory and made anew at each start (%s); data.index_folder names "
        "a folder for it",
        path,
        "; ".join(reasons),
    )
    return None


def write_arrays(
    place: Path, **arrays: Any
) -> None:  # arrays; numpy's stub takes an unpacked one for its own flag
    """numpy's archive of the arrays; it appears complete or not at all. Raises: OSError, leaving nothing."""
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
