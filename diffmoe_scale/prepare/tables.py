"""Tables of image paths and captions as text: .csv, .tsv, and .jsonl with one object a line."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.place import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, Entry, FilePlace, Record
from diffmoe_scale.prepare.texts import parse_record
from diffmoe_scale.prepare.walk import suffix_of
from diffmoe_scale.unicode import NOT_UTF8, clean_name, decode_text, read_text_file

LINE_TABLES = ("csv", "tsv", "jsonl", "ndjson")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
QUOTE = '"'


def list_table(table: Path, columns: Columns, *, losses: Losses) -> Iterator[Entry]:
    """The pictures that the rows of a table name, relative to its folder.

    Columns are looked for in all rows. A line of a .jsonl that is no object is counted in `losses`.

    Raises: ValueError, naming the line, for a .csv or .tsv that is no table; for missing columns.
    """
    match suffix_of(table.name):
        case "csv" | "tsv":
            rows = _delimited_rows(table)
        case "jsonl" | "ndjson":
            rows = list(_json_rows(table, losses))
        case _:
            raise ValueError(
                f"--input {table} is neither a folder nor a .tar, .csv, .tsv, .jsonl or .parquet file"
            )
    if not rows:
        return
    names = list(dict.fromkeys(name for _, row, _ in rows for name in row))
    image = choose_column("image", columns.image, IMAGE_COLUMNS, names, columns)
    caption = choose_column("caption", columns.caption, CAPTION_COLUMNS, names, columns)
    for line, row, notes in rows:
        name = str(row.get(image) or f"line {line} of {table.name}")
        yield Entry(name, FilePlace(table.parent / name), row | {"caption": row.get(caption)}, notes=notes)


Row = tuple[int, Record, tuple[str, ...]]


def _json_rows(table: Path, losses: Losses) -> Iterator[Row]:
    for number, (line, notes) in enumerate(_lines(table), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_record(line), notes
        except ValueError as error:
            losses.add(
                "line that is no JSON object",
                f"{table.name}, line {number}",
                f"{line.strip()[:80]!r} ({error})",
            )


def _delimited_rows(table: Path) -> list[Row]:
    lines = list(_lines(table))
    if not lines:
        return []
    if NOT_UTF8 in lines[0][1] or "\0" in lines[0][0]:
        raise ValueError(f"{table}, line 1, cannot be read: expected a table in UTF-8 with a header")
    values: Iterable[tuple[int, list[str]]]
    if suffix_of(table.name) == "csv":
        values = _parse_quoted(table, [line for line, _ in lines], ",")
    else:
        values = _parse_tabs(table, [line for line, _ in lines])
    (_, header), *rest = values
    columns = [name.strip() for name in header]
    if len(set(columns)) < len(columns):
        double = sorted({name for name in columns if columns.count(name) > 1})
        raise ValueError(
            f"{table} has the columns {', '.join(map(clean_name, double))} twice; name each column once"
        )
    rows: list[Row] = []
    previous = 1
    for line, row in rest:
        first, previous = previous, line
        if not any(row):
            continue
        # In a .csv mostly a comma of a caption without quotes: its first part alone would be trained on.
        if len(row) != len(columns):
            raise ValueError(
                f"{table}, line {line}, has {len(row)} values, more or fewer values than the header's "
                f"{len(columns)}; captions with commas need quotes: {clean_name(str(row))}"
            )
        notes = sorted({note for _, found in lines[first:line] for note in found})
        rows.append((line, dict(zip(columns, row, strict=True)), tuple(notes)))
    return rows


def _parse_quoted(table: Path, lines: Sequence[str], delimiter: str) -> list[tuple[int, list[str]]]:
    """Rows with the number of their last line. Raises: ValueError naming the line of a misplaced quote."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    started = 1
    try:
        for row in reader:
            rows.append((reader.line_num, row))
            started = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ValueError(
                f"{table} cannot be read: a quote opens in line {started} and is never closed: "
                f"{clean_name(lines[started - 1])}"
            ) from error
        line = clean_name(lines[reader.line_num - 1])
        if "expected after" not in str(error):  # csv's word for a quote
            raise ValueError(f"{table} cannot be read: line {reader.line_num}: {error}: {line}") from error
        raise ValueError(
            f"{table} cannot be read: line {reader.line_num} has a quote in the wrong place: {line}; "
            'a quote within a quoted value is written twice ("")'
        ) from error
    return rows


def _parse_tabs(table: Path, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Rows of a .tsv, where a quote is a character like others. Where the header is quoted, or only quotes
    give each row the header's number of values, it was written as a .csv with tabs, and is read so."""
    plain = [(number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, 1)]
    header = plain[0][1]
    is_quoted = all(len(name) > 1 and name[0] == name[-1] == QUOTE for name in header)
    is_even = all(len(row) == len(header) for _, row in plain if any(row))
    if is_quoted or not is_even:
        try:
            quoted = _parse_quoted(table, lines, "\t")
        except ValueError:
            quoted = []
        if quoted and all(len(row) == len(header) for _, row in quoted if any(row)):
            return quoted
    return [(number, [_unquote(value) for value in row]) for number, row in plain]


def _unquote(value: str) -> str:
    """The value of a field that a writer of .csv files has put in quotes because there are some in it."""
    inner = value[1:-1]
    is_written = len(value) > 1 and value[0] == value[-1] == QUOTE and QUOTE in inner
    if is_written and QUOTE not in inner.replace(2 * QUOTE, ""):
        return inner.replace(2 * QUOTE, QUOTE)
    return value


def _lines(table: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The lines of a text file with their ends, and what was found about the bytes of each."""
    with table.open("rb") as file:
        if file.read(2) in UTF_16:
            for line in io.StringIO(read_text_file(table), newline=""):
                yield line, ()
            return
        file.seek(0)
        for data in file:
            yield decode_text(data)


def choose_column(
    kind: str, wanted: str, usual: Sequence[str], names: Sequence[str], columns: Columns
) -> str:
    """The wanted column, or the first usual one that there is. Raises: ValueError if there is none."""
    for name in [wanted] if wanted else usual:
        if name in names:
            columns.tell(f"{kind} column: {name}")
            return name
    raise ValueError(
        f"no {kind} column {wanted or ' or '.join(usual)}; "
        f"found {', '.join(clean_name(str(name)) for name in names)}; "
        f"name one with --{kind}-column"
    )


def json_text(record: Record) -> str:
    """A record as JSON; values of other kinds as their text."""
    return json.dumps(record, default=str)
