"""The pictures of a tar file with their texts, found by name as in a folder, wherever in the file they
lie."""

import os
import posixpath
from pathlib import Path

from diffmoe_scale.data.shards.archive import Problem, iterate_members
from diffmoe_scale.data.shards.index import COMPRESSED, IMAGE_SUFFIXES
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.pairs import pair_texts, stem_of
from diffmoe_scale.prepare.place import Entry, FilePlace, Text
from diffmoe_scale.prepare.walk import PICTURE_SUFFIXES, TEXT_SUFFIXES, suffix_of

FURTHER = "further picture of a sample of a tar file"


def list_tar(path: Path, *, prefix: str, losses: Losses) -> list[Entry]:
    """The pictures of a tar file in their order. Members of equal names are kept apart: the first ones of all
    names belong together, then the second ones.

    What cannot be read, and what is hidden, is counted in `losses`.

    Raises: ValueError for a compressed file; OSError.
    """
    label = prefix or f"{path.name}/"
    rounds: list[dict[str, FilePlace]] = []
    seen: dict[str, int] = {}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _refuse_compressed(path, os.pread(descriptor, 8, 0))
        for item in iterate_members(descriptor):
            if isinstance(item, Problem):
                losses.add(item.kind, label + item.name)
                continue
            name = posixpath.normpath(item.name)
            if _is_hidden(name):
                if suffix_of(name) in (*PICTURE_SUFFIXES, *TEXT_SUFFIXES):
                    losses.add("hidden file", label + name)
                continue
            number = seen.get(name, 0)
            seen[name] = number + 1
            if number == len(rounds):
                rounds.append({})
            rounds[number][name] = FilePlace(path, item.offset, item.size)
    finally:
        os.close(descriptor)
    return [
        entry for places in rounds for entry in _entries(places, prefix=prefix, label=label, losses=losses)
    ]


def _entries(places: dict[str, FilePlace], *, prefix: str, label: str, losses: Losses) -> list[Entry]:
    pairs = pair_texts(list(places), losses=losses, prefix=label)
    chosen = _choose(pairs)
    entries = []
    for picture, texts in pairs.items():
        if chosen.get(picture, picture) != picture:
            losses.add(FURTHER, label + picture, f"{chosen[picture]} is taken")
            continue
        found = tuple(Text(suffix_of(name), label + name, places[name]) for name in texts)
        entries.append(Entry(prefix + picture, places[picture], texts=found))
    return entries


def _choose(pairs: dict[str, list[str]]) -> dict[str, str]:
    """The picture that is taken for each one that shares a sample with others, as training reads them:
    KEY.jpg and KEY.png are one sample, KEY.mask.png without a text of its own belongs to it."""
    by_stem: dict[str, list[str]] = {}
    for picture in pairs:
        by_stem.setdefault(stem_of(picture), []).append(picture)
    chosen: dict[str, str] = {}
    for stem, pictures in by_stem.items():
        first = min(pictures, key=lambda name: _order(suffix_of(name)))
        folder, base = posixpath.split(stem)
        key = posixpath.join(folder, base.split(".")[0])
        if key != stem and key in by_stem and not any(pairs[picture] for picture in pictures):
            first = min(by_stem[key], key=lambda name: _order(suffix_of(name)))
        chosen |= dict.fromkeys(pictures, first)
    return chosen


def _order(suffix: str) -> int:
    return IMAGE_SUFFIXES.index(suffix) if suffix in IMAGE_SUFFIXES else len(IMAGE_SUFFIXES)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _refuse_compressed(path: Path, beginning: bytes) -> None:
    for mark, name in COMPRESSED.items():
        if beginning.startswith(mark):
            raise ValueError(f"{path} is compressed ({name}); unpack it to a plain tar file")
