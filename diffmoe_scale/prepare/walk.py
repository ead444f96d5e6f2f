"""The files of a folder: links are followed once, and what cannot be entered is named."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES
from diffmoe_scale.prepare.losses import Losses

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, "jfif", "jpe", "mpo", "apng", "pbm", "pgm", "pnm", "j2k", "jpx")
"""Of files that are taken for pictures; what they are is found from their bytes."""
TEXT_SUFFIXES = ("txt", "json")
"""Of files that belong to a picture, the first one that has a caption counts."""
Identity = tuple[int, int]


def suffix_of(name: str) -> str:
    """In lower case, without the dot; "" for a name without one."""
    base = name.rsplit("/", 1)[-1]
    return base.rpartition(".")[2].lower() if "." in base[1:] else ""


def list_files(root: Path, *, excluded: Collection[Path], losses: Losses) -> list[str]:
    """Paths of all visible files below a folder, relative to it, sorted.

    Links to folders are followed after the real folders, each folder is read once, and a link to a folder
    above is not followed. `excluded` folders are passed over. Hidden files and folders, folders that cannot
    be entered, and what is no file are counted in `losses`; a dangling link to a picture is listed, so that
    it is named when it is read.
    """
    seen = {found for path in (root, *excluded) if (found := _identity(path)) is not None}
    above = {found for path in root.resolve().parents if (found := _identity(path)) is not None}
    files: list[str] = []
    folders, links = [""], list[str]()
    while folders or links:
        if folders:
            _list_folder(root, folders.pop(), seen, files=files, folders=folders, links=links, losses=losses)
            continue
        links.sort(reverse=True)
        link = links.pop()
        found = _identity(root / link)
        if found is None:
            losses.add("link that leads nowhere", link)
        elif found in above:
            losses.add("link to a folder above, not followed", link)
        elif found in seen:
            losses.add("link to a folder that is read already", link)
        else:
            seen.add(found)
            folders.append(link)
    return sorted(files)


def _list_folder(
    root: Path,
    folder: str,
    seen: set[Identity],
    *,
    files: list[str],
    folders: list[str],
    links: list[str],
    losses: Losses,
) -> None:
    """Sort what lies in one folder into the lists."""
    try:
        with os.scandir(root / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        losses.add("folder that cannot be entered", folder or ".", error.strerror or str(error))
        return
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        is_link = entry.is_symlink()
        is_wanted = suffix_of(name) in (*PICTURE_SUFFIXES, *TEXT_SUFFIXES)
        if entry.name.startswith("."):
            if is_wanted or _is_folder(entry):
                losses.add("hidden file" if is_wanted else "hidden folder", name)
        elif _is_folder(entry):
            identity = _identity(root / name)
            if is_link:
                links.append(name)
            elif identity not in seen:
                seen |= {identity} if identity else set()
                folders.append(name)
        elif _is_file(entry) or (is_link and suffix_of(name) in PICTURE_SUFFIXES):
            files.append(name)
        else:
            losses.add("link that leads nowhere" if is_link else "neither a file nor a folder", name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself.
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(path: Path) -> Identity | None:
    """Device and number of what a path leads to; None if it leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def by_suffix(names: Sequence[str]) -> dict[str, list[str]]:
    """The names under the suffix that each has."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(suffix_of(name), []).append(name)
    return found
