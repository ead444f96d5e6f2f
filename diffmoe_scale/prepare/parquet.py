"""Tables in parquet files: pictures in their cells, or paths of pictures. pyarrow is imported here alone."""

import datetime
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any  # pyarrow is untyped

from diffmoe_scale.json_text import parse_json
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.place import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, Entry, FilePlace, Place
from diffmoe_scale.prepare.tables import choose_column
from diffmoe_scale.unicode import clean_name, decode_text
from diffmoe_scale.words import counted

DAMAGED = "row of a damaged parquet row group"


@dataclass(frozen=True)
class CellPlace:
    """A cell of a parquet file: bytes, or a struct with `bytes` or a `path` (Hugging Face's image column)."""

    path: Path
    group: int
    column: str
    row: int

    def read(self) -> bytes:
        where = f"row {self.row} of row group {self.group} of {self.path}"
        try:
            with _reading:
                column = _read_column(self.path, self.group, self.column)
            value = column[self.row].as_py()
        except Exception as error:
            # pyarrow raises OSError, ArrowInvalid and others for damaged pages.
            raise OSError(f"{where} cannot be read: {_first_line(error)}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
            return FilePlace(self.path.parent / value["path"]).read()
        if not isinstance(data, bytes):
            raise OSError(f"{where} has no bytes in the column {self.column}")
        return data


# Threads that miss together would each read the whole group.
_reading = Lock()


# Rows are read in order by several threads, so a few groups are in use at once.
@lru_cache(maxsize=4)
def _read_column(path: Path, group: int, column: str) -> Any:  # a pyarrow array
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


def list_parquet(table: Path, columns: Columns, *, losses: Losses) -> Iterator[Entry]:
    """The rows of a parquet file; pictures stay in it until they are read. A row group that is damaged is
    counted in `losses` with its rows.

    Raises: ValueError for a file that is none, and for columns that are missing or named twice.
    """
    file = _open(table)
    schema = file.schema_arrow
    double = [name for name, count in Counter(schema.names).items() if count > 1]
    if double:
        raise ValueError(
            f"{table} has the columns {', '.join(map(clean_name, double))} twice; name each column once"
        )
    image = choose_column("image", columns.image, IMAGE_COLUMNS, schema.names, columns)
    caption = choose_column("caption", columns.caption, CAPTION_COLUMNS, schema.names, columns)
    has_bytes = _has_bytes(table, schema.field(image))
    others = [name for name in schema.names if name != image or not has_bytes]
    number = 0
    for group in range(file.num_row_groups):
        try:
            rows = _read_rows(file, group, others)
        except Exception as error:
            # As in CellPlace.read.
            count = file.metadata.row_group(group).num_rows
            number += count
            where = f"{table.name}, row group {group} ({counted(count, 'row')})"
            losses.add(DAMAGED, where, _first_line(error), count=count)
            continue
        for row, (record, notes) in enumerate(rows):
            number += 1
            own = str(record.get("key") or number) if has_bytes else str(record.get(image) or f"row {number}")
            place: Place = CellPlace(table, group, image, row) if has_bytes else FilePlace(table.parent / own)
            name = f"{table.stem}/{own}" if has_bytes else own
            yield Entry(name, place, record | {"caption": record.get(caption)}, notes=notes)


def _open(table: Path) -> Any:  # a ParquetFile
    import pyarrow  # a second, and needed by few
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(table)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{table} cannot be read: {_first_line(error)}; expected a parquet file") from error


def _has_bytes(table: Path, field: Any) -> bool:  # a pyarrow field
    """Whether a column of images holds them, or paths. Raises: ValueError for another type."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return False
    is_binary = any(
        check(kind)
        for check in (
            types.is_binary,
            types.is_large_binary,
            types.is_fixed_size_binary,
            types.is_binary_view,
        )
    )
    if is_binary or types.is_struct(kind):
        return True
    raise ValueError(
        f"{table} has values of the type {kind} in the column {field.name}; expected bytes of images or paths"
    )


def _read_rows(
    file: Any, group: int, names: list[str]
) -> list[tuple[dict[str, object], tuple[str, ...]]]:  # a ParquetFile
    """The usable values of each row, and what was found about its texts."""
    import pyarrow

    read = file.read_row_group(group, columns=names)
    values: dict[str, list[object]] = {}
    notes: list[set[str]] = [set() for _ in range(read.num_rows)]
    for name in names:
        column = read.column(name)
        try:
            values[name] = column.to_pylist()
        except UnicodeDecodeError:
            values[name] = column.cast(pyarrow.binary()).to_pylist()
        if name == "key":
            continue
        for row, value in enumerate(values[name]):
            if isinstance(value, bytes) and len(value) <= 1 << 20:
                values[name][row], found = decode_text(value)
                notes[row] |= set(found)
    return [
        (
            {name: kept for name in names if (kept := _for_json(values[name][row])) is not None},
            tuple(sorted(notes[row])),
        )
        for row in range(read.num_rows)
    ]


def _for_json(value: object) -> object:
    """A value as .json files can hold it: dates and decimals as text; None for bytes and for what is no
    number."""
    if value is None or isinstance(value, str | int):
        return value
    try:
        return parse_json(json.dumps(value, allow_nan=False, default=_as_text))
    except (TypeError, ValueError):
        return None


def _as_text(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | Decimal):
        return str(value)
    raise TypeError


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {clean_name(str(error).splitlines()[0] if str(error) else '')}"
