"""Pictures as their sources name them: in folders, tar files, tables and parquet files; those that
img2dataset writes among them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffmoe_scale.config.check import require
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.pairs import pair_texts
from diffmoe_scale.prepare.parquet import list_parquet
from diffmoe_scale.prepare.place import Columns, Entry, FilePlace, Text
from diffmoe_scale.prepare.sources import UNUSED, UNUSED_COUNT, Sources, sources_of
from diffmoe_scale.prepare.tables import LINE_TABLES, list_table
from diffmoe_scale.prepare.tars import list_tar
from diffmoe_scale.prepare.walk import PICTURE_SUFFIXES, by_suffix, list_files, suffix_of

TABLE_BESIDE = "table or tar file beside pictures, not read"


@dataclass
class Listing:
    """The pictures of an input, what else was found there and is not used, and what the input is known by."""

    entries: list[Entry] = field(default_factory=list)
    unused: Losses = field(default_factory=Losses)
    files: list[tuple[str, Path]] = field(default_factory=list)
    """Every file that pictures or texts come from: its name and its path."""

    def sources(self) -> Sources:
        """State of every file, and what is not used: it goes into the manifest."""
        unused = {f"{UNUSED}{reason}": str(names) for reason, names in self.unused.names.items()}
        counts = {
            f"{UNUSED}{reason}{UNUSED_COUNT}": str(count) for reason, count in self.unused.counts.items()
        }
        return Sources({**sources_of(self.files).states, **unused, **counts})


def list_pictures(source: Path, columns: Columns, *, excluded: Collection[Path] = ()) -> Listing:
    """The pictures of a folder, sorted by path, of a tar file, or of a table, line by line.

    A folder without pictures stands for its tar files; one without those for its parquet files. `excluded`
    folders (of the output) are no part of the input.

    Raises: ValueError if there are none, or a table does not have the columns.
    """
    listing = Listing()
    if source.is_dir():
        _list_folder(source, listing, columns, excluded)
    elif not source.exists():
        raise ValueError(f"--input {source} does not exist")
    elif suffix_of(source.name) == "tar":
        _add_tar(source, listing, prefix="")
    else:
        _add_table(source, listing, columns)
    is_table = any(suffix_of(path.name) in ("parquet", *LINE_TABLES) for _, path in listing.files)
    for option, name in (("--image-column", columns.image), ("--caption-column", columns.caption)):
        require(is_table or not name, option, name, f"nothing: --input {source} is no table")
    if not listing.entries:
        lines = "; ".join(line.strip() for line in listing.unused.lines(limit=3))
        raise ValueError(
            f"no image in {source}; expected files {', '.join(PICTURE_SUFFIXES)}, or a .tar or .parquet "
            "with some" + (f"; found: {lines}" if lines else "")
        )
    return listing


def _list_folder(source: Path, listing: Listing, columns: Columns, excluded: Collection[Path]) -> None:
    names = list_files(source, excluded=excluded, losses=listing.unused)
    kinds = by_suffix(names)
    has_pictures = any(suffix in kinds for suffix in PICTURE_SUFFIXES)
    if not has_pictures and "tar" in kinds:
        for name in kinds.pop("tar"):
            _add_tar_of_folder(source, name, listing)
        # img2dataset's records of its own work lie beside its tar files.
        _count_others(kinds, listing, known=("json", "parquet"))
        return
    if not has_pictures and "parquet" in kinds:
        for name in kinds.pop("parquet"):
            _add_parquet_of_folder(source, name, listing, columns)
        _count_others(kinds, listing, known=("json",))
        return
    for suffix in ("tar", "parquet", *LINE_TABLES):
        for name in kinds.pop(suffix, []):
            listing.unused.add(TABLE_BESIDE, name, "give it as --input to read it")
    rest = sorted(name for several in kinds.values() for name in several)
    for picture, texts in pair_texts(rest, losses=listing.unused).items():
        found = tuple(Text(suffix_of(name), name, FilePlace(source / name)) for name in texts)
        listing.entries.append(Entry(picture, FilePlace(source / picture), texts=found))
        listing.files += [(name, source / name) for name in (picture, *texts)]


def _count_others(kinds: dict[str, list[str]], listing: Listing, *, known: Collection[str]) -> None:
    for suffix, names in kinds.items():
        for name in names if suffix not in known else ():
            listing.unused.add("file beside tar or parquet files", name)


def _add_tar_of_folder(source: Path, name: str, listing: Listing) -> None:
    try:
        _add_tar(source / name, listing, prefix=name.removesuffix(Path(name).suffix) + "/")
    except (OSError, ValueError) as error:
        listing.unused.add("tar file that cannot be read", name, str(error))


def _add_tar(path: Path, listing: Listing, *, prefix: str) -> None:
    listing.files.append((path.name if not prefix else f"{prefix.removesuffix('/')}.tar", path))
    listing.entries += list_tar(path, prefix=prefix, losses=listing.unused)


def _add_parquet_of_folder(source: Path, name: str, listing: Listing, columns: Columns) -> None:
    if not _is_parquet(source / name):
        listing.unused.add("parquet file that cannot be read", name, "it is no parquet file, or cut off")
        listing.files.append((name, source / name))
        return
    listing.files.append((name, source / name))
    _add_entries(list_parquet(source / name, columns, losses=listing.unused), listing)


def _is_parquet(path: Path) -> bool:
    """Whether a file begins and ends with parquet's mark."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(-4, 2)
            return first == file.read(4) == b"PAR1"
    except OSError:
        return False


def _add_table(table: Path, listing: Listing, columns: Columns) -> None:
    listing.files.append((table.name, table))
    is_parquet = suffix_of(table.name) == "parquet"
    read = list_parquet if is_parquet else list_table
    _add_entries(read(table, columns, losses=listing.unused), listing)


def _add_entries(entries: Iterator[Entry], listing: Listing) -> None:
    """Entries of a table; the pictures that it names are files of their own."""
    for entry in entries:
        listing.entries.append(entry)
        if isinstance(entry.image, FilePlace):
            listing.files.append((entry.name, entry.image.path))
