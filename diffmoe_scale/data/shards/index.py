"""Where each sample of a tar shard lies: made by one scan, kept in a file beside the shard."""

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from webdataset.tariterators import base_plus_ext

from diffmoe_scale.data.features.source import FEATURE_SUFFIX
from diffmoe_scale.data.shards.archive import Problem, iterate_members
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2")


COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


NAMED_PROBLEMS = 20


# Of webdataset's reader (tariterators.tar_file_iterator): such members belong to no sample.
META_NAME = re.compile(r"__[^/]*__($|/)")


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
        logger.warning("shard %s: %s: %s", clean_name(str(path)), problem.kind, clean_name(problem.name))
    if len(problems) > NAMED_PROBLEMS:
        logger.warning(
            "shard %s: %s, in all %s",
            clean_name(str(path)),
            counted(len(problems) - NAMED_PROBLEMS, "more problem"),
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
                f"shard {path} is compressed ({name}); samples are read by offset, so unpack it to a plain "
                "tar file"
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
