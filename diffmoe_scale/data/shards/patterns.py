"""Shard files of paths, globs, brace lists and URLs. Loads no torch: wrong patterns are answered at once."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand

from diffmoe_scale.config.data import DataConfig, DatasetConfig
from diffmoe_scale.config.origin import split_foreign
from diffmoe_scale.data.shards.remote import RemoteShards, is_url
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

MOST_SHARDS = 1_000_000
SCHEMES = ("http", "https", "s3", "gs", "sftp", "ftps", "scp", "ais", "hf", "htgs", "pipe")
"""Of URLs: those of webdataset 1.0.2 (webdataset.gopen.gopen_schemes), and s3."""
INDEX_SUFFIX = ".index.npz"
"""Of what was found in a shard, in a file beside it: no shard itself."""


def pattern_groups(patterns: Sequence[str | DatasetConfig]) -> list[tuple[str, ...]]:
    """The patterns of each of several data sets, or those of the only one."""
    groups = [entry.shards for entry in patterns if isinstance(entry, DatasetConfig)]
    return groups or [tuple(entry for entry in patterns if isinstance(entry, str))]


def check_patterns(config: DataConfig) -> None:
    """Look whether there are shards to train on; nothing is read or fetched.

    Raises: ValueError that names the setting.
    """
    groups = [("data.train", group) for group in pattern_groups(config.train)]
    groups += [("data.validation", config.validation)] if config.validation else []
    for setting, patterns in groups:
        try:
            expand_patterns(patterns, remote_shards(config))
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from error


def remote_shards(config: DataConfig) -> RemoteShards | None:
    """Copies of URLs; None without a folder for them."""
    if not config.cache_folder:
        return None
    return RemoteShards(
        Path(config.cache_folder),
        limit_bytes=int(config.cache_gib * 2**30),
        attempts=config.fetch_attempts,
        stall_timeout_s=config.stall_timeout_s,
    )


def expand_patterns(patterns: Sequence[str], remote: RemoteShards | None = None) -> list[Path]:
    """Shard files of paths, globs and brace lists (the shell's notation), in the order given and sorted
    within a glob.

    URLs are registered with `remote`, and stand as the places of their copies. The braces of a `pipe:`
    command are expanded, too; its variables are the shell's.

    Raises: ValueError for a pattern without a file, and for a URL where there is no `remote`.
    """
    if not patterns:
        raise ValueError(
            "no shards are given; expected tar files, for example [shards/train-*.tar] or "
            "['shards/train-{000..099}.tar']"
        )
    paths: list[Path] = []
    for pattern in map(_without_command, patterns):
        # Braces, too, may be those of a file's own name.
        for name in [pattern] if _is_file(pattern) else _expand(pattern):
            if name.startswith("file:") and not _is_file(name):
                name = _path_of_url(name)
            elif is_url(name) and not _is_file(name):
                _check_scheme(name)
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
            f"{len(missing)} of {counted(len(paths), 'shard')} not there, or no file: {named}{folder}"
        )
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        logger.info(
            "matched by more than one pattern and read once: %s",
            counted(len(paths) - len(unique), "shard"),
        )
    return unique


def _without_command(pattern: str) -> str:
    """A pattern without its mark. Raises: ValueError for a command that a run's config.yaml names."""
    is_foreign, pattern = split_foreign(pattern)
    if is_foreign and not _is_file(pattern) and any(name.startswith("pipe:") for name in _expand(pattern)):
        raise ValueError(
            f"the run's config.yaml names a command instead of a file ({pattern!r:.200}), which is not run: "
            "it may come from someone else; name the shards on the command line (data.validation=[...], "
            "data.train=[...])"
        )
    return pattern


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
            f"shard pattern {shown!r} stands for {counted(number, 'shard')}; expected at most {MOST_SHARDS}: "
            "see the numbers in its braces"
        )
    try:
        # As webdataset.shardlists.expand_urls: several patterns may be joined by ::
        names: list[str] = [name for part in pattern.split("::") for name in braceexpand(part)]
    except ValueError as error:  # braces that are not closed
        raise ValueError(
            f"shard pattern {shown!r} cannot be read ({error}); braces are written {{000..099}} or {{a,b}}"
        ) from error
    return names


def _path_of_url(name: str) -> str:
    """The path of a `file:` URL. Raises: ValueError for one of another machine."""
    parts = urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(
            f"shard {clean_name(name)!r} names the machine {clean_name(parts.netloc)!r}; a file of this "
            "one is file:///PATH, or its path alone"
        )
    # Brackets and wildcards are those of a pattern, as in a path.
    return unquote(name.removeprefix("file:").removeprefix(f"//{parts.netloc}"))


def _check_scheme(url: str) -> None:
    """Raises: ValueError for a kind of URL that nothing fetches."""
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"shard {clean_name(url)!r} is a URL of {scheme!r}, which nothing here fetches; expected one of "
            f"{', '.join(SCHEMES)}: or a path"
        )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except ValueError:
        # A name with a NUL.
        return False
