"""Files of prompts (plain text, JSON lines, tables), and the pictures that they ask for."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.json_text import parse_json
from diffmoe_scale.sampling.batch import MAX_SEED, Request
from diffmoe_scale.unicode import clean_text, decode_text, read_text_file

COLUMNS = ("prompt", "negative_prompt", "seed")
TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
OTHER_KINDS = (".json", ".parquet", ".xlsx", ".xls", ".ods", ".yaml", ".yml", ".tar", ".gz", ".zip")


@dataclass(frozen=True)
class PromptRow:
    """A prompt of a file; None where the file leaves negative prompt or seed to the command line."""

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None


def read_prompt_file(path: Path) -> list[PromptRow]:
    """The prompts of a file: of .jsonl objects and .csv or .tsv tables the columns `prompt` and, where they
    are, `negative_prompt` and `seed` (others are left alone); of any other file its lines that are not empty.

    Raises: ValueError naming file and line, OSError if it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_KINDS:
        raise ValueError(
            f"{path} is no file of prompts that is read; expected .txt (one a line), .jsonl, .csv or .tsv"
        )
    text = read_text_file(path)
    if suffix in JSON_LINES:
        rows = list(_json_rows(path, text))
    elif suffix in TABLES:
        rows = list(_table_rows(path, text, TABLES[suffix]))
    else:
        rows = [PromptRow(line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no prompt")
    return rows


def make_requests(
    rows: Sequence[PromptRow | int], *, count: int, seed: int, negative_prompt: str
) -> list[Request]:
    """`count` pictures of each prompt or label: from noise 0, 1, ... of a row's own seed, else of `seed` and
    the picture's place in the whole."""
    requests: list[Request] = []
    for row in rows:
        for copy in range(count):
            place = len(requests)
            if isinstance(row, int):
                requests.append(Request(row, seed, place, negative_prompt))
                continue
            negative = negative_prompt if row.negative_prompt is None else row.negative_prompt
            own_seed, index = (seed, place) if row.seed is None else (row.seed, copy)
            requests.append(Request(row.prompt, own_seed, index, negative))
    return requests


def _json_rows(path: Path, text: str) -> Iterator[PromptRow]:
    # Not splitlines(): a JSON string may hold other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            entry = parse_json(line, object_pairs_hook=_object)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ValueError(
                f'{where} is {line.strip()!r:.80}; expected an object such as {{"prompt": "..."}}'
            )
        yield _row(where, {name: entry[name] for name in COLUMNS if entry.get(name) is not None}, list(entry))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is there more than once")
    return dict(pairs)


def _table_rows(path: Path, text: str, delimiter: str) -> Iterator[PromptRow]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(where, cells)
                continue
            if len(cells) != len(header):
                raise ValueError(f"{where} has {len(cells)} cells; the header has {len(header)}")
            entry = dict(zip(header, cells, strict=True))
            yield _row(where, {name: entry[name] for name in COLUMNS if entry.get(name)}, header)
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is no line of a table ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _header(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ValueError(f"{where} names the column {twice[0]} more than once")
    if "prompt" not in names:
        raise ValueError(f"{where} names no column prompt; it names {', '.join(names)!r:.200}")
    return names


def _row(where: str, entry: dict[str, Any], names: list[str]) -> PromptRow:
    if "prompt" not in entry:
        raise ValueError(f"{where} has no prompt; it has {', '.join(names)!r:.200}")
    for name in ("prompt", "negative_prompt"):
        if not isinstance(entry.get(name, ""), str):
            raise ValueError(f"{where}: {name} is {entry[name]!r:.80}; expected text")
    prompt = clean_prompt(entry["prompt"])
    if not prompt:
        raise ValueError(f"{where} has an empty prompt")
    negative_prompt = clean_prompt(entry["negative_prompt"]) if "negative_prompt" in entry else None
    return PromptRow(prompt, negative_prompt, _seed(where, entry.get("seed")))


def decode_argument(text: str) -> str:
    """A prompt of the command line, whatever the locale that its bytes were read by."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # never the shell's bytes, but a caller's text
        return clean_prompt(text)
    return decode_text(data)[0].strip()


def clean_prompt(value: str) -> str:
    """Without what is no text, such as halves of surrogate pairs, which JSON can spell."""
    return clean_text(value)[0].strip()


def _seed(where: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        digits = value.strip()
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else value
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise ValueError(f"{where}: seed is {value!r:.80}; expected a whole number, 0 to {MAX_SEED}")
    return value
