"""Where a picture and its texts lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "path", "jpg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "prompt", "title", "description")
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
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except ValueError as error:
            # A name with a NUL.
            raise OSError(f"{str(self.path)!r} is no path ({error})") from error
        if 0 <= self.size != len(data):
            raise OSError(f"{len(data)} of {self.size} bytes at {self.offset}: the file was cut off")
        return data


@dataclass(frozen=True)
class Text:
    """A caption or a record beside a picture; `kind` is txt or json."""

    kind: str
    name: str
    place: Place


@dataclass(frozen=True)
class Entry:
    """A picture as its source names it. Its caption is in `record` (a table's row, under "caption"), else in
    `texts`."""

    name: str
    image: Place
    record: Record | None = None
    texts: tuple[Text, ...] = ()
    notes: tuple[str, ...] = ()
    """What was found about the text of its row, kinds of `unicode.TEXT_NOTES`."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; "" is the first usual name that there is. `tell` is given a line for
    the user about each choice."""

    image: str = ""
    caption: str = ""
    tell: Callable[[str], object] = print
