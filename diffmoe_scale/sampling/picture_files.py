"""Single pictures as files that say how they were made, under names that are free and safe."""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffmoe_scale.json_text import parse_json

PictureFormat = Literal["png", "jpeg", "webp"]
FORMATS: tuple[PictureFormat, ...] = ("png", "jpeg", "webp")
SUFFIXES: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The formats that are written, by the suffixes of their files."""
QUALITY = 95
MAX_TEXT, MAX_TEXT_OF_JPEG = 10_000, 2_000
"""Letters of a prompt that are kept: JPEG holds 65,000 bytes, a letter takes up to 12 as JSON."""
MAX_STEM = 60
EXIF_FOLDER, EXIF_COMMENT, ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"

Metadata = Mapping[str, str | int]
"""What a picture was made of: prompt, negative_prompt, seed, index, settings, checkpoint, step, weights,
version."""


def encode_picture(pixels_HWC: np.ndarray, kind: PictureFormat, metadata: Metadata) -> bytes:
    """A file's bytes. PNG: a text entry for each entry of `metadata`. JPEG and WebP: one JSON object as the
    EXIF comment, the prompt also as the XMP description."""
    entries = entries_of(metadata, kind)
    picture, buffer = Image.fromarray(pixels_HWC), BytesIO()
    if kind == "png":
        text = PngInfo()
        for name, value in entries.items():
            text.add_itxt(name, str(value))
        picture.save(buffer, "PNG", pnginfo=text)
        return buffer.getvalue()
    exif = Image.Exif()
    exif.get_ifd(EXIF_FOLDER)[EXIF_COMMENT] = ASCII + json.dumps(entries).encode("ascii")
    xmp = _xmp(str(entries.get("prompt", "")))
    picture.save(buffer, kind.upper(), quality=QUALITY, exif=exif.tobytes(), xmp=xmp)
    return buffer.getvalue()


def entries_of(metadata: Metadata, kind: PictureFormat) -> Metadata:
    """`metadata` as a file of this kind can hold it."""
    limit = MAX_TEXT_OF_JPEG if kind == "jpeg" else MAX_TEXT
    return {name: _shortened(value, limit) for name, value in metadata.items()}


def suffix_of(kind: PictureFormat) -> str:
    return ".jpg" if kind == "jpeg" else f".{kind}"


def read_picture_metadata(path: Path) -> dict[str, str | int]:
    """What `encode_picture` wrote; numbers of a PNG as text. Empty for other pictures.

    Raises: OSError if the file is no picture.
    """
    try:
        with Image.open(path, formats=[kind.upper() for kind in FORMATS]) as picture:
            if picture.format == "PNG":
                picture.load()
                return {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
            comment = picture.getexif().get_ifd(EXIF_FOLDER).get(EXIF_COMMENT, b"")
    except OSError:
        raise
    except Exception as error:  # Pillow raises nearly anything for broken data
        raise OSError(f"{type(error).__name__}: {error}") from error
    if not isinstance(comment, bytes) or not comment.startswith(ASCII):
        return {}
    try:
        entries = parse_json(comment[len(ASCII) :])
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def write_free(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write FOLDER/STEM.SUFFIX or, where that is taken, STEM-2.SUFFIX, STEM-3.SUFFIX, ...

    An existing file is never touched, also none that another process makes at this moment. Raises: OSError.
    """
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path
    raise AssertionError("unreachable: numbers do not end")


def make_free_folder(path: Path, *, beside: str) -> Path:
    """Make the folder PATH or, where that or the file PATH + `beside` is taken, PATH-2, PATH-3, ... Raises:
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if folder.with_name(folder.name + beside).exists():
            continue
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable: numbers do not end")


def file_stem(number: int, prompt: str | int) -> str:
    """`00007-a-red-circle`: a name that every file system takes, whatever the prompt."""
    plain = unicodedata.normalize("NFKD", str(prompt)[:MAX_TEXT]).encode("ascii", "ignore").decode("ascii")
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:MAX_STEM].strip("-")
    return f"{number:05d}-{words}" if words else f"{number:05d}"


def _shortened(value: str | int, limit: int) -> str | int:
    if isinstance(value, int):
        return value
    # A PNG's text ends at NUL; half a surrogate pair is no text.
    text = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _xmp(description: str) -> bytes:
    # What XML 1.0 does not allow.
    allowed = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", description)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{escape(allowed)}</rdf:li>'
        "</rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
