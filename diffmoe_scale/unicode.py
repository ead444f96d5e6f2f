"""Text and names from outside: every sequence of bytes gives a text, and what was odd about it is named."""

import codecs
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

BYTE_ORDER_MARK = "byte_order_mark"
NOT_UTF8 = "not_utf8"
CUT = "cut_text"
NULS = "nuls"
CONTROL = "control_characters"
HALF_PAIR = "half_pair"
TEXT_NOTES = {
    BYTE_ORDER_MARK: "text with a byte-order mark, which was left out",
    NOT_UTF8: "text that is no UTF-8, read as Windows-1252",
    CUT: "text in UTF-16 or UTF-32 with bytes that are no character, which were replaced",
    CONTROL: "text with control characters, which were left out",
    NULS: "text with NULs, which were left out",
    HALF_PAIR: "text with half a surrogate pair, which was replaced",
}
"""Kinds of what is noted about a text, with their meaning."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""In this order: UTF-32's first mark begins with UTF-16's."""
CONTROLS = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""All but tab, line breaks and NUL; no text means them, and they steer terminals."""
LONGEST_NAME = 300
SURROGATE = re.compile("[\ud800-\udfff]")


def decode_text(data: bytes) -> tuple[str, tuple[str, ...]]:
    """The text of some bytes, and kinds of TEXT_NOTES. Never raises.

    UTF-8, or UTF-16 and UTF-32 with their mark, or UTF-16 without one where most of every second byte is NUL
    (Latin text); anything else is read as Windows-1252, in which all but five bytes are characters.
    """
    found = []
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    found += [BYTE_ORDER_MARK] if encoding else []
    if not encoding and (encoding := _unmarked_utf16(data)):
        found.append(NOT_UTF8)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding in ("utf-16", "utf-32", "utf-16-le", "utf-16-be"):
            text = data.decode(encoding, "replace")
            found.append(CUT)
        else:
            text = data.removeprefix(codecs.BOM_UTF8).decode("cp1252", "replace")
            found.append(NOT_UTF8)
    text, notes = clean_text(text)
    return text, (*found, *notes)


def read_text_file(path: Path) -> str:
    """The text of a file; what is odd about its bytes is warned of. Raises: OSError."""
    text, notes = decode_text(path.read_bytes())
    for note in notes:
        logger.warning("%s: %s", path, TEXT_NOTES[note])
    return text


def _unmarked_utf16(data: bytes) -> str:
    """The name of UTF-16 without its mark, told by NULs in most of the even or of the odd places; else ""."""
    half = len(data) // 2
    if half < 2:
        return ""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if odd > 0.6 * half and even == 0:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and odd == 0 else ""


def clean_text(text: str) -> tuple[str, tuple[str, ...]]:
    """The same without NULs, and without halves of surrogate pairs, which no tokenizer and no file takes;
    kinds of TEXT_NOTES."""
    found = []
    if "\0" in text:
        text = text.replace("\0", "")
        found.append(NULS)
    if SURROGATE.search(text):
        # Two halves that belong together become one sign.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        found.append(HALF_PAIR)
    if CONTROLS.search(text):
        text = CONTROLS.sub("", text)
        found.append(CONTROL)
    return text, tuple(found)


def clean_name(text: str) -> str:
    """A name or message that changes nothing in a terminal, a log or a page: one line, at most LONGEST_NAME
    characters and "...", control characters and halves of surrogate pairs as escapes."""
    cleaned = _escaped(text[: LONGEST_NAME + 1])
    return cleaned if len(cleaned) <= LONGEST_NAME else cleaned[:LONGEST_NAME] + "..."


def safe_member_name(name: str) -> str:
    """A name within an archive that unpacks below its folder: no root, no `..`, no control characters. It is
    as long as it is: two names that differ late stay two."""
    parts = [part for part in _escaped(name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "unnamed"


def _escaped(text: str) -> str:
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
