"""Pictures as their sources name them: folders, tables, parquet files, tar files; those that img2dataset
writes among them. pyarrow's door."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol  # Any: pyarrow is untyped

from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES, scan_shard

IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "path", "jpg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "prompt", "title", "description")
TABLES = ("csv", "tsv", "jsonl", "ndjson", "parquet")
NAMED = 10
Record = dict[str, object]


class Place(Protocol):
    """Where bytes are."""

    def read(self) -> bytes:
        """Raises: OSError where they cannot be read."""
        ...


@dataclass(frozen=True)
class FilePlace:
    """A whole file, or `size` bytes of it."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class CellPlace:
    """A cell of a parquet file: bytes, or a struct with `bytes` (Hugging Face's image column)."""

    path: Path
    group: int
    column: str
    row: int

    def read(self) -> bytes:
        value = _read_column(self.path, self.group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise OSError(
                f"row {self.row} of row group {self.group} of {self.path} has no bytes in the column {self.column}"
            )
        return data


# Rows are read in order by several threads, so a few groups are in use at once.
@lru_cache(maxsize=4)
def _read_column(path: Path, group: int, column: str) -> Any:  # a pyarrow array
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


@dataclass(frozen=True)
class Entry:
    """A picture as its source names it. Captions are in `record` (a table's row), else in `texts` by suffix:
    txt, json."""

    name: str
    image: Place
    record: Record | None = None
    texts: dict[str, Place] = field(default_factory=dict)

    def read_record(self) -> Record:
        """What is known about the picture; "caption" is a text, a list of texts or missing. Raises:
        ValueError for an unreadable file."""
        if self.record is not None:
            return dict(self.record)
        kind = "json"
        try:
            record = (
                dict(json.loads(self.texts[kind].read().decode("utf-8-sig"))) if kind in self.texts else {}
            )
            if (kind := "txt") in self.texts:
                record["caption"] = self.texts[kind].read().decode("utf-8-sig")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"its .{kind} is no {'JSON object' if kind == 'json' else 'text'} in UTF-8 ({error})"
            ) from error
        return record


def find_entries(source: Path, *, image_column: str, caption_column: str) -> list[Entry]:
    """The pictures of a folder, sorted by path, of a tar file, or of a table, line by line. A folder with tar
    files stands for those; one without pictures for its parquet files.

    Raises: ValueError if there are none, or a table does not have the columns.
    """
    if source.is_dir():
        paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        entries = _of_folder(source, visible, image_column, caption_column)
    elif not source.is_file():
        raise ValueError(f"--input {source} does not exist")
    elif suffix_of(source.name) == "tar":
        entries = list(_of_tar(source, prefix=""))
    else:
        entries = _of_table(source, image_column, caption_column)
    if not entries:
        raise ValueError(
            f"no image in {source}; expected files {', '.join(IMAGE_SUFFIXES)}, or a .tar or .parquet with some"
        )
    return entries


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower().removeprefix(".")


def _of_folder(source: Path, visible: Sequence[Path], image_column: str, caption_column: str) -> list[Entry]:
    by_suffix: dict[str, list[Path]] = {}
    for path in visible:
        by_suffix.setdefault(suffix_of(path.name), []).append(path)
    if "tar" in by_suffix:
        return [
            entry
            for path in by_suffix["tar"]
            for entry in _of_tar(source / path, prefix=str(path.with_suffix("")) + "/")
        ]
    known = set(visible)
    pictures = [path for path in visible if suffix_of(path.name) in IMAGE_SUFFIXES]
    if not pictures and "parquet" in by_suffix:
        return [
            entry
            for path in by_suffix["parquet"]
            for entry in _of_table(source / path, image_column, caption_column)
        ]
    others = Counter(
        path.suffix for path in visible if suffix_of(path.name) not in (*IMAGE_SUFFIXES, "txt", "json")
    )
    if others:
        print(f"files of no known kind, by suffix: {dict(others.most_common(NAMED))}")
    return [
        Entry(
            str(path),
            FilePlace(source / path),
            texts={
                kind: FilePlace(source / beside)
                for kind in ("txt", "json")
                if (beside := path.with_suffix(f".{kind}")) in known
            },
        )
        for path in pictures
    ]


def _of_tar(path: Path, *, prefix: str) -> Iterator[Entry]:
    index = scan_shard(path)
    for row in range(len(index)):
        spans = index.members(row)
        suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in spans), None)
        if suffix is not None:
            places = {
                kind: FilePlace(path, span.offset, span.size)
                for kind, span in spans.items()
                if kind in (suffix, "txt", "json")
            }
            yield Entry(
                f"{prefix}{index.key(row)}.{suffix}", places.pop(suffix), texts=dict[str, Place](places)
            )


def _of_table(table: Path, image_column: str, caption_column: str) -> list[Entry]:
    try:
        return list(
            _read_parquet(table, image_column, caption_column)
            if suffix_of(table.name) == "parquet"
            else _read_lines(table, image_column, caption_column)
        )
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read: {error}; expected a table in UTF-8") from error


def _read_lines(table: Path, image_column: str, caption_column: str) -> Iterator[Entry]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        match suffix_of(table.name):
            case "csv" | "tsv" as suffix:
                rows: Iterator[Record] = csv.DictReader(
                    lines, delimiter="," if suffix == "csv" else "\t", strict=True
                )  # type: ignore[assignment]  # its values are text
            case "jsonl" | "ndjson":
                rows = (_json_object(line, table) for line in lines if line.strip())
            case _:
                raise ValueError(
                    f"--input {table} is neither a folder nor a .tar, .csv, .tsv, .jsonl or .parquet file"
                )
        for number, row in enumerate(rows, 1):
            if number == 1:
                image_column = _choose_column("image", image_column, IMAGE_COLUMNS, row)
                caption_column = _choose_column("caption", caption_column, CAPTION_COLUMNS, row)
            # In a .csv mostly a comma of a caption without quotes: its first part alone would be trained on.
            if None in row or (None in row.values() and suffix_of(table.name) in ("csv", "tsv")):
                raise ValueError(
                    f"row {number} of {table} has more or fewer values than the header; captions with commas need quotes: {row}"
                )
            name = str(row.get(image_column) or f"row {number}")
            yield Entry(name, FilePlace(table.parent / name), row | {"caption": row.get(caption_column)})


def _read_parquet(table: Path, image_column: str, caption_column: str) -> Iterator[Entry]:
    import pyarrow  # a second, and needed by few
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(table)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{table} cannot be read: {error}; expected a parquet file") from error
    schema = file.schema_arrow
    image_column = _choose_column("image", image_column, IMAGE_COLUMNS, schema.names)
    caption_column = _choose_column("caption", caption_column, CAPTION_COLUMNS, schema.names)
    kind = schema.field(image_column).type
    has_bytes = not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
    # Pictures stay in the file until they are looked at.
    others = [name for name in schema.names if name != image_column or not has_bytes]
    number = 0
    for group in range(file.num_row_groups):
        for row, record in enumerate(file.read_row_group(group, columns=others).to_pylist()):
            number += 1
            record = {
                name: value for name, value in record.items() if isinstance(value, str | int | float | list)
            }
            name = (
                str(record.get("key") or number)
                if has_bytes
                else str(record.get(image_column) or f"row {number}")
            )
            image: Place = (
                CellPlace(table, group, image_column, row) if has_bytes else FilePlace(table.parent / name)
            )
            yield Entry(
                f"{table.stem}/{name}" if has_bytes else name,
                image,
                record | {"caption": record.get(caption_column)},
            )


def _json_object(line: str, table: Path) -> Record:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{table} has the line {line.strip()[:80]!r}, which is no JSON object ({error})"
        ) from error


def _choose_column(kind: str, wanted: str, usual: Sequence[str], columns: Any) -> str:  # names, or a row
    for name in [wanted] if wanted else usual:
        if name in columns:
            print(f"{kind} column: {name}")
            return name
    raise ValueError(
        f"no {kind} column {wanted or ' or '.join(usual)}; found {', '.join(map(str, columns))}; name one with --{kind}-column"
    )
