"""Reading the user's copies of benchmarks: what is missing or of another kind is said with file and line."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.json_text import parse_json
from diffmoe_scale.unicode import read_text_file


def read_text(path: Path, benchmark: str) -> str:
    """Raises: ValueError if there is no such file, OSError."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}; expected {benchmark}'s own file: it is not part of this package")
    return read_text_file(path)


def read_json_lines(path: Path, fields: Mapping[str, type], benchmark: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, each with these fields of these types.

    Raises: ValueError for other lines: they are of another benchmark.
    """
    entries = []
    for number, line in enumerate(read_text(path, benchmark).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON; expected a line of {benchmark}") from error
        check_fields(entry, fields, where, benchmark)
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path} is empty; expected lines of {benchmark}")
    return entries


def check_fields(entry: Any, fields: Mapping[str, type], where: str, benchmark: str) -> None:
    """Raises: ValueError for a value that is no object with these fields."""
    wanted = f"expected an object of {benchmark} with {', '.join(fields)}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} holds a {type(entry).__name__}; {wanted}")
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or isinstance(entry.get(name), bool) != (kind is bool):
            found = f"{name} {entry[name]!r:.60}" if name in entry else f"only {', '.join(entry)!r:.200}"
            raise ValueError(f"{where} has {found}; {wanted}")


def read_table(path: Path, columns: Sequence[str], benchmark: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a .csv file stands, and its cells by column. Raises: ValueError for another table."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(read_text(path, benchmark), newline=""), strict=True)
        header: list[str] = []
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if not header:
                header = [cell.strip() for cell in cells]
                if missing := [name for name in columns if name not in header]:
                    raise ValueError(
                        f"{where} names no column {missing[0]}; expected the table of {benchmark} with "
                        f"{', '.join(columns)}"
                    )
            elif len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            elif cells:
                raise ValueError(f"{where} has {len(cells)} cells; the header has {len(header)}")
    except csv.Error as error:
        raise ValueError(f"{path} is no table of {benchmark} ({error})") from error
    finally:
        csv.field_size_limit(limit)


def share(value: Any, where: str) -> float:
    """A score between 0 and 1, which may be text. Raises: ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise ValueError(f"{where} has the score {value!r:.60}; expected a number from 0 to 1")
    return number


def all_places(found: Mapping[int, Any], count: int, path: Path) -> None:
    """Raises: ValueError if results lack some of the pictures."""
    if missing := count - len(found):
        raise ValueError(f"{path} lacks the results of {missing} of {count} pictures; score all of them")
