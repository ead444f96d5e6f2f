"""Labels of pictures from the folders that they lie in, as ImageNet has them: one folder a class."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffmoe_scale.config.check import require
from diffmoe_scale.prepare.entries import Listing
from diffmoe_scale.prepare.place import Entry
from diffmoe_scale.unicode import clean_name, read_text_file
from diffmoe_scale.words import counted

FOLDERS = "folders"
"""Value of --classes: every folder of the input is a class, in the order of their names."""
OUTSIDE = "picture outside the class folders"
UNLISTED = "picture of a folder that is not in the list of --classes"
NAMED_CLASSES = 5


@dataclass(frozen=True)
class Classes:
    """Folder and name of each class, by label; equal where no list gives names."""

    folders: Sequence[str]
    names: Sequence[str]

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {folder: label for label, folder in enumerate(self.folders)}

    def label(self, entry: Entry) -> int:
        """Of a picture in one of the folders."""
        return self._labels[folder_of(entry)]

    def count(self, entries: Iterable[Entry]) -> list[int]:
        """Pictures of each label."""
        counts = Counter(map(self.label, entries))
        return [counts[label] for label in range(len(self.folders))]

    def __contains__(self, folder: str) -> bool:
        return folder in self._labels

    def describe(self) -> list[dict[str, object]]:
        """For a manifest."""
        pairs = zip(self.folders, self.names, strict=True)
        return [
            {"label": label, "folder": folder, "name": name} for label, (folder, name) in enumerate(pairs)
        ]


def folder_of(entry: Entry) -> str:
    """The first folder on the way to a picture; "" for one that lies in none."""
    folder, slash, _ = entry.name.partition("/")
    return folder if slash else ""


def find_classes(what: str, source: Path, listing: Listing, *, excluded: Collection[Path]) -> Classes:
    """The classes of the pictures in a folder. `what` is FOLDERS, or a file with the name of a folder a line;
    `excluded` folders are no part of the input.

    Pictures of no class leave `listing.entries` and are counted in `listing.unused`.

    Raises: ValueError where there are no folders, a class has no picture, or the file names what is not
    there.
    """
    expected = "a folder with one folder for each class, for --classes"
    is_tree = source.is_dir() and all(entry.record is None for entry in listing.entries)
    require(is_tree, "--input", str(source), expected)
    filled = {folder_of(entry) for entry in listing.entries} - {""}
    require(bool(filled), "--input", str(source), f"{expected}; its pictures lie in no folder")
    if what == FOLDERS:
        _refuse_empty(source, _folders(source, listing, excluded) - filled)
        classes = Classes(sorted(filled), [clean_name(folder) for folder in sorted(filled)])
    else:
        classes = _read_list(Path(what).expanduser(), source, filled)
    for entry in listing.entries:
        folder = folder_of(entry)
        if folder not in classes:
            listing.unused.add(UNLISTED if folder else OUTSIDE, entry.name)
    listing.entries = [entry for entry in listing.entries if folder_of(entry) in classes]
    return classes


def _folders(source: Path, listing: Listing, excluded: Collection[Path]) -> set[str]:
    """All visible folders, and tar files that stand for folders; one within a folder is a part of that."""
    others = {path.resolve() for path in excluded}
    folders = {
        path.name
        for path in source.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.resolve() not in others
    }
    tars = (name.removesuffix(".tar") for name, _ in listing.files if name.endswith(".tar"))
    return folders | {name.partition("/")[0] for name in tars}


def _refuse_empty(source: Path, empty: Iterable[str]) -> None:
    if names := sorted(map(clean_name, empty)):
        raise ValueError(
            f"--input {source} has {counted(len(names), 'class folder')} without a picture: {_some(names)}; "
            "remove them, or list the classes in a file for --classes"
        )


def _read_list(file: Path, source: Path, filled: set[str]) -> Classes:
    """A line is the name of a folder, perhaps with a space and what it shows; its number is the label."""
    try:
        text = read_text_file(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"--classes {file} cannot be read: {reason}; expected 'folders' or a file"
        ) from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    require(any(lines), "--classes", str(file), "a file with the name of a class folder a line; it is empty")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, *rest = [line] if line in filled else line.split(maxsplit=1) or [""]
        place = f"line {number} of --classes {file} is {clean_name(line)!r}"
        if not line:
            raise ValueError(
                f"line {number} of --classes {file} is empty; remove it: a label is the number of its line"
            )
        if folder in found:
            raise ValueError(f"{place}; expected each class once")
        if folder not in filled:
            raise ValueError(f"{place}; expected a folder of {source} with pictures")
        found[folder] = clean_name(rest[0] if rest else folder)
    return Classes(list(found), list(found.values()))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_CLASSES]) + (", ..." if len(names) > NAMED_CLASSES else "")
