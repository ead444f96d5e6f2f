"""Pictures on disk as a stream, from a .npz in ADM's layout or from a folder: none are kept.

B pictures of a batch; H W C height, width and colours.
"""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from diffmoe_scale.data.reading.pictures import flatten, open_image
from diffmoe_scale.evaluation.metrics.archive import open_archive
from diffmoe_scale.evaluation.metrics.weights import READ_AT_ONCE, sha256_of
from diffmoe_scale.json_text import parse_json

PICTURES = "arr_0"
MADE_OF = "metadata.jsonl"
"""Member of a .npz that `sample` wrote: a line of what is common, then a line a picture."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"}
WHITE = (255, 255, 255)
Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class PictureBatch:
    """uint8 pictures of one size, their numbers from 0, and their captions where they are known."""

    pictures_BHWC: np.ndarray
    places: list[int]
    captions: list[str] | None = None


class PictureSource(Protocol):
    """Pictures in a fixed order. `path` and `count` say which and how many."""

    path: Path

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> Size:
        """Of the first picture."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of all that is read, 16 digits."""
        ...

    def batches(self, size: int, *, rank: int = 0, ranks: int = 1) -> Iterator[PictureBatch]:
        """Batches of at most `size`; of several ranks each takes every so-many-th batch.

        Raises: ValueError for what is no picture, with its name.
        """
        ...


def open_pictures(
    path: Path, *, read_caption: Callable[[Path], str | None] = lambda _: None
) -> PictureSource:
    """The pictures of a .npz file or a folder; `read_caption` finds a file's caption.

    Raises: ValueError if there are none.
    """
    if path.is_dir():
        return FolderPictures(path, read_caption)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a folder of pictures or a .npz file")
    return NpzPictures(path)


class NpzPictures:
    """`arr_0`, uint8 [N, H, W, 3], read batch by batch from the archive."""

    def __init__(self, path: Path) -> None:
        """Raises: ValueError if the file is no such archive."""
        self.path = path
        with open_archive(path) as archive, _open_member(archive, path) as file:
            self.shape = _read_shape(file, path)

    @property
    def count(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> Size:
        return self.shape[1], self.shape[2]

    def fingerprint(self) -> str:
        return sha256_of(self.path)[:16]

    @cached_property
    def captions(self) -> list[str] | None:
        """None where the file does not say them, or has class labels."""
        with open_archive(self.path) as archive:
            if MADE_OF not in archive.namelist():
                return None
            lines = archive.read(MADE_OF).splitlines()[1:]
            try:
                found = [parse_json(line)["prompt"] for line in lines]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{self.path}: {MADE_OF} is damaged ({type(error).__name__})") from error
        is_whole = len(found) == self.count and all(isinstance(caption, str) for caption in found)
        return found if is_whole else None

    def batches(self, size: int, *, rank: int = 0, ranks: int = 1) -> Iterator[PictureBatch]:
        with open_archive(self.path) as archive, _open_member(archive, self.path) as file:
            _read_shape(file, self.path)
            for number, first in enumerate(range(0, self.count, size)):
                places = list(range(first, min(first + size, self.count)))
                count = len(places) * math.prod(self.shape[1:])
                data = file.read(count)
                if len(data) != count:
                    raise ValueError(f"{self.path} is cut off within {PICTURES}")
                if number % ranks == rank:
                    captions = self.captions and self.captions[places[0] : places[-1] + 1]
                    pictures_BHWC = np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:]).copy()
                    yield PictureBatch(pictures_BHWC, places, captions)


def _open_member(archive: zipfile.ZipFile, path: Path) -> IO[bytes]:
    name = f"{PICTURES}.npy"
    if name not in archive.namelist():
        found = ", ".join(member.removesuffix(".npy") for member in archive.namelist()) or "nothing"
        raise ValueError(f"{path} holds {found!a:.200}; expected pictures as {PICTURES}, uint8 [N, H, W, 3]")
    return archive.open(name)


def _read_shape(file: IO[bytes], path: Path) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"{path}: {PICTURES} has version {version} of numpy's format; expected 1.0 or 2.0")
    shape, is_fortran, kind = read[version](file)
    layout = f"{path}: {PICTURES} is {kind} {list(shape)}"
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise ValueError(f"{layout}, colours first; expected uint8 [N, H, W, 3] (np.moveaxis(x, 1, 3))")
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise ValueError(f"{layout}; expected uint8 [N, H, W, 3]")
    if is_fortran:
        raise ValueError(f"{layout} in Fortran's order; write it from np.ascontiguousarray(x)")
    return tuple(shape)


class FolderPictures:
    """All picture files of a folder (not of folders in it), by name; transparent pixels become white."""

    def __init__(self, path: Path, read_caption: Callable[[Path], str | None]) -> None:
        """Raises: ValueError if there are none."""
        self.path, self.read_caption = path, read_caption
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
        self.files = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ValueError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")

    @property
    def count(self) -> int:
        return len(self.files)

    @cached_property
    def size(self) -> Size:
        height, width, _ = _decode(self.files[0]).shape
        return height, width

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            line = f"{len(file.name)} {file.name} {file.stat().st_size}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))  # a file's name need not be text
            with file.open("rb") as content:
                while data := content.read(READ_AT_ONCE):
                    digest.update(data)
        return digest.hexdigest()[:16]

    def batches(self, size: int, *, rank: int = 0, ranks: int = 1) -> Iterator[PictureBatch]:
        for number, first in enumerate(range(0, self.count, size)):
            if number % ranks == rank:
                files = self.files[first : first + size]
                pictures = [self._checked(file) for file in files]
                captions = [self.read_caption(file) for file in files]
                known = [caption for caption in captions if caption is not None]
                places = list(range(first, first + len(files)))
                yield PictureBatch(np.stack(pictures), places, known if len(known) == len(files) else None)

    def _checked(self, file: Path) -> np.ndarray:
        picture_HWC = _decode(file)
        if picture_HWC.shape[:2] != self.size:
            shape = "{} x {}".format(*picture_HWC.shape)
            raise ValueError(
                f"{file} is {shape} pixels, but {self.files[0].name} {self.size[0]} x {self.size[1]}; "
                "expected pictures of one size: crop and scale them first"
            )
        return picture_HWC


def _decode(file: Path) -> np.ndarray:
    """Raises: ValueError with the name of what is no picture, OSError."""
    data = file.read_bytes()
    try:
        return np.asarray(flatten(open_image(data), WHITE))
    except Exception as error:  # Pillow raises nearly anything for broken data
        raise ValueError(f"{file} is no picture that is read: {error}") from error
