"""Shard files of paths, globs, brace lists and URLs."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

from diffmoe_scale.data.shards.remote import RemoteShards, is_url
from diffmoe_scale.data.shards.sidecar import INDEX_SUFFIX
from diffmoe_scale.unicode import clean_name

logger = logging.getLogger(__name__)

MOST_SHARDS = 1_000_000


def expand_patterns(patterns: Sequence[str], remote: RemoteShards | None = None) -> list[Path]:
    """Shard files of paths, globs and brace lists (webdataset's notation), in the order given and sorted
    within a glob.

    URLs are registered with `remote`, and stand as the places of their copies. The braces of a `pipe:`
    command are webdataset's, too.

    Raises: ValueError for a pattern without a file, and for a URL where there is no `remote`.
    """
    if not patterns:
        raise ValueError(
            "no shards are given; set data.train to tar files, for example [shards/train-*.tar] or "
            "['shards/train-{000..099}.tar']"
        )
    paths: list[Path] = []
    for pattern in patterns:
        # Braces, too, may be those of a file's own name.
        for name in [pattern] if _is_file(pattern) else _expand(pattern):
            if is_url(name):
                if remote is None:
                    raise ValueError(
                        f"shard {name!r} is no local file; set data.cache_folder to a folder for copies "
                        "(data.cache_gib limits it)"
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


def _expand(pattern: str) -> list[str]:
    """The names that the braces of a pattern stand for. Raises: ValueError for too many, or for braces and
    variables that nothing can be read from."""
    shown = clean_name(pattern)
    if "$" in pattern and not pattern.startswith("pipe:") and (found := re.search(r"\$\{?\w+\}?", pattern)):
        raise ValueError(
            f"shard pattern {shown!r} holds {found[0]!r}, which no shell has replaced; write the folder"
        )
    number = 1
    for inner in re.findall(r"\{([^{}]*)\}", pattern):
        ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?", inner)
        step = max(1, int(ends[3] or 1)) if ends else 1
        number *= abs(int(ends[2]) - int(ends[1])) // step + 1 if ends else inner.count(",") + 1
    if number > MOST_SHARDS:
        raise ValueError(
            f"shard pattern {shown!r} stands for {number} shards; expected at most {MOST_SHARDS}: "
            "see the numbers in its braces"
        )
    try:
        names: list[str] = expand_urls(pattern)
    except ValueError as error:  # braces that are not closed
        raise ValueError(
            f"shard pattern {shown!r} cannot be read ({error}); braces are written {{000..099}} or {{a,b}}"
        ) from error
    return names


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except ValueError:
        # A name with a NUL.
        return False
