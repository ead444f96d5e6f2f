"""Where drawn pictures go: numbered files in a folder, where a stopped drawing can go on, or one file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.files import replace_file
from diffmoe_scale.sampling.metadata import find_difference
from diffmoe_scale.sampling.picture_files import (
    FORMATS,
    SUFFIXES,
    Metadata,
    PictureFormat,
    encode_picture,
    entries_of,
    file_stem,
    read_picture_metadata,
    suffix_of,
    write_free,
)
from diffmoe_scale.telemetry.picture_grid import save_image_grid

MAX_GRID_PIXELS = 2**24
"""Of the pictures of a grid together: 256 of 256 x 256. More are drawn, but not shown in it."""
NUMBER = re.compile(r"(\d{5,12})[-.]")
CHOOSE = "give the same settings to go on, or choose another --output"


class Store(Protocol):
    """A place for `count` pictures, numbered from 0. The main rank asks what is missing and finishes; all
    ranks write."""

    def missing(self) -> list[int]:
        """Numbers of the pictures that are not there yet. Raises: ValueError for pictures made otherwise."""

    def write(self, number: int, pixels_HWC: np.ndarray) -> None:
        """Raises: OSError."""

    def finish(self, *, drawn: int, summary: str) -> list[str]:
        """What was written, a line each; `drawn` pictures are new."""


@dataclass
class SingleFile:
    """One picture, under the name given or the next free one."""

    path: Path
    kind: PictureFormat
    describe: Callable[[int], Metadata]

    def missing(self) -> list[int]:
        return [0]

    def write(self, number: int, pixels_HWC: np.ndarray) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = encode_picture(pixels_HWC, self.kind, self.describe(number))
        self.path = write_free(self.path.parent, self.path.stem, self.path.suffix, data)

    def finish(self, *, drawn: int, summary: str) -> list[str]:
        return [f"{self.path}: 1 picture, {summary}"]


@dataclass(frozen=True)
class PictureFolder:
    """A file for each picture, `00007-a-red-circle.png`, and a grid of the first of them."""

    folder: Path
    kind: PictureFormat
    count: int
    describe: Callable[[int], Metadata]
    columns: int
    grid: Path | None = None
    """None is grid.png in the folder, or the next free name."""

    def missing(self) -> list[int]:
        there: set[int] = set()
        for path in sorted(self.folder.iterdir()):
            match = NUMBER.match(path.name)
            if match is None or path.suffix.lower() not in SUFFIXES:
                continue
            number = int(match[1])
            if difference := self._difference(path, number):
                raise ValueError(f"{path} was drawn with {difference}; {CHOOSE}")
            there.add(number)
        return [number for number in range(self.count) if number not in there]

    def write(self, number: int, pixels_HWC: np.ndarray) -> None:
        path = self._path(number)
        if path.exists():
            raise RunError(
                f"{path} was written by another process meanwhile; let one alone draw into a folder"
            )
        replace_file(path, encode_picture(pixels_HWC, self.kind, self.describe(number)))

    def finish(self, *, drawn: int, summary: str) -> list[str]:
        count = f"{self.count} picture{'s' * (self.count > 1)}"
        before = f", {self.count - drawn} of them from before" if drawn < self.count else ""
        if drawn == 0:
            return [f"{self.folder}: {count}, all of them from before: nothing was drawn"]
        shown, grid = self._save_grid()
        rest = f" (the first {shown} shown)" if shown < self.count else ""
        return [f"{self.folder}: {count}{before}", f"{grid}: {count}{rest}, {summary}"]

    def _difference(self, path: Path, number: int) -> str:
        try:
            found = read_picture_metadata(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a picture ({error}); remove it to go on") from error
        is_ours = number < self.count
        wanted = entries_of(self.describe(number if is_ours else 0), self.kind)
        difference = find_difference(found, wanted, is_same_place=is_ours)
        if not difference and is_ours and path.name != self._path(number).name:
            return f"the name {path.name} instead of {self._path(number).name}"
        return difference

    def _path(self, number: int) -> Path:
        prompt = self.describe(number)["prompt"]
        return self.folder / f"{file_stem(number, prompt)}{suffix_of(self.kind)}"

    def _save_grid(self) -> tuple[int, Path]:
        """How many pictures it shows, and where it is."""
        first = _read_pixels(self._path(0))
        limit = max(self.columns, MAX_GRID_PIXELS // (first.shape[0] * first.shape[1]))
        shown = min(limit, self.count)
        pixels_BHWC = np.stack([_read_pixels(self._path(number)) for number in range(shown)])
        images_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2) / 127.5 - 1
        grid = self.grid or write_free(self.folder, "grid", ".png", b"")  # the name is ours from now on
        captions = [str(self.describe(number)["prompt"]) for number in range(shown)]
        save_image_grid(images_BCHW, captions, grid, columns=self.columns)
        return shown, grid


def _read_pixels(path: Path) -> np.ndarray:
    with Image.open(path, formats=[kind.upper() for kind in FORMATS]) as picture:
        return np.asarray(picture.convert("RGB"))
