"""What is known about a picture: its captions by the one rule for several, and the record that KEY.json
keeps."""

from dataclasses import dataclass, field

from diffmoe_scale.data.reading.captions import caption_texts
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.prepare.place import Entry, Record, Text
from diffmoe_scale.unicode import TEXT_NOTES, clean_text, decode_text

DEEPEST = 100
"""Levels of a JSON text; Python's own limit depends on where it is read."""
NOT_USED = "text beside one that comes before it"
UNREADABLE_TEXT = "text that could not be read"


class BadText(ValueError):
    """A picture whose only texts cannot be read."""


@dataclass
class Known:
    """Of one picture. Training draws one of several captions."""

    captions: list[str]
    record: Record
    notes: list[tuple[str, str]] = field(default_factory=list)
    """What was dealt with: a kind, and a detail."""


def read_known(entry: Entry) -> Known:
    """Captions and record of a picture. A .txt with a caption comes before the "caption" of a .json; an empty
    one hides nothing.

    Raises: BadText where there is no caption but a text that cannot be read.
    """
    if entry.record is not None:
        record = dict(entry.record)
        notes = [(TEXT_NOTES[kind], "") for kind in entry.notes]
        captions = _clean(record.get("caption"), notes, "")
        return Known(captions, _with_captions(record, captions), notes)
    known = Known([], {})
    problems = []
    records: list[tuple[Text, Record]] = []
    for text in entry.texts:
        try:
            _read_one(text, known, records)
        except (OSError, ValueError) as error:
            problems.append((UNREADABLE_TEXT, f"{text.name}: {error}"))
    for text, _ in records[1:]:
        known.notes.append((NOT_USED, text.name))
    known.record = records[0][1] if records else {}
    if not known.captions and records:
        known.captions = _clean(known.record.get("caption"), known.notes, records[0][0].name)
    if problems and not known.captions:
        raise BadText("; ".join(f"{detail}" for _, detail in problems))
    known.notes += problems
    known.record = _with_captions(known.record, known.captions)
    return known


def _read_one(text: Text, known: Known, records: list[tuple[Text, Record]]) -> None:
    data = text.place.read()
    decoded, found = decode_text(data)
    known.notes += [(TEXT_NOTES[kind], text.name) for kind in found]
    if text.kind == "json":
        try:
            records.append((text, parse_record(decoded)))
        except ValueError as error:
            raise ValueError(f"its .json is no JSON object ({error})") from error
    elif known.captions and decoded.strip():
        known.notes.append((NOT_USED, text.name))
    else:
        known.captions += caption_texts(decoded)


def _with_captions(record: Record, captions: list[str]) -> Record:
    """The record with the caption where its own is empty; never another one in the place of its own."""
    if caption_texts(record.get("caption")):
        return record
    return record | ({"caption": captions[0]} if captions else {})


def parse_record(text: str) -> Record:
    """The object of a JSON text. Raises: ValueError for anything else."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")
    if _is_deeper(found, DEEPEST):
        raise ValueError(f"nested more than {DEEPEST} deep")
    return found


def _is_deeper(tree: object, levels: int) -> bool:
    layer = [tree]
    for _ in range(levels):
        layer = [
            inner
            for node in layer
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


def _clean(found: object, notes: list[tuple[str, str]], name: str) -> list[str]:
    """The captions in a "caption" field."""
    captions = []
    for text in caption_texts(found):
        cleaned, kinds = clean_text(text)
        captions += caption_texts(cleaned)
        notes += [(TEXT_NOTES[kind], name) for kind in kinds]
    return captions
