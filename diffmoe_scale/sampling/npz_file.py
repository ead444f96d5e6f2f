"""One .npz of all pictures in the layout of ADM's reference batches, written picture by picture.

`arr_0` is uint8 [N, H, W, 3]. Beside it lies `metadata.jsonl`: what all pictures have in common in its
first line, then prompt, negative prompt, seed and index of each. While it is drawn, NAME.npz.unfinished
holds a byte a picture, 1 where it is done, and then the pixels.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.sampling.metadata import COMPARED, find_difference
from diffmoe_scale.sampling.picture_files import Metadata
from diffmoe_scale.sampling.stores import CHOOSE

PICTURES, MADE_OF = "arr_0.npy", "metadata.jsonl"
COPIED_AT_ONCE = 2**24


@dataclass(frozen=True)
class NpzFile:
    """A store of `count` pictures [height, width, 3]."""

    path: Path
    count: int
    height: int
    width: int
    describe: Callable[[int], Metadata]

    @property
    def unfinished(self) -> Path:
        return self.path.with_name(f"{self.path.name}.unfinished")

    @property
    def made_of(self) -> Path:
        return self.path.with_name(f"{self.path.name}.unfinished.jsonl")

    @property
    def size(self) -> int:
        return self.height * self.width * 3

    @cached_property
    def pages(self) -> np.ndarray:
        return np.memmap(self.unfinished, dtype=np.uint8, mode="r+", shape=(self.count * (1 + self.size),))

    def missing(self) -> list[int]:
        if self.path.exists():
            self._check(self.path, _read_made_of(self.path))
            return []
        if self.made_of.exists() and self.unfinished.exists():
            self._check(self.unfinished, self.made_of.read_bytes())
            return [int(number) for number in np.flatnonzero(self.pages[: self.count] == 0)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.unfinished.open("wb") as file:
            file.truncate(self.count * (1 + self.size))
        replace_file(self.made_of, b"".join(self._lines()))
        return list(range(self.count))

    def write(self, number: int, pixels_HWC: np.ndarray) -> None:
        first = self.count + number * self.size
        self.pages[first : first + self.size] = pixels_HWC.reshape(-1)
        self.pages[number] = 1

    def finish(self, *, drawn: int, summary: str) -> list[str]:
        count = f"{self.count} picture{'s' * (self.count > 1)}"
        if drawn == 0 and self.path.exists():
            return [f"{self.path}: {count}, all of them from before: nothing was drawn"]
        assert self.pages[: self.count].all(), "a rank left out pictures"
        whole = self.path.with_name(f".{self.path.name}.tmp")
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(PICTURES, "w", force_zip64=True) as member:
                shape = (self.count, self.height, self.width, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                with self.unfinished.open("rb") as pixels:
                    pixels.seek(self.count)
                    shutil.copyfileobj(pixels, member, COPIED_AT_ONCE)
            archive.write(self.made_of, MADE_OF)
        whole.replace(self.path)
        self.unfinished.unlink()
        self.made_of.unlink()
        before = f", {self.count - drawn} of them from before" if drawn < self.count else ""
        return [f"{self.path}: {count}{before}, {summary}"]

    def _lines(self) -> Iterator[bytes]:
        common = {name: value for name, value in self.describe(0).items() if name not in COMPARED}
        common |= {"count": self.count, "height": self.height, "width": self.width}
        yield json.dumps(common).encode() + b"\n"
        for number in range(self.count):
            made_of = self.describe(number)
            yield json.dumps({name: made_of[name] for name in COMPARED}).encode() + b"\n"

    def _check(self, path: Path, made_of: bytes) -> None:
        """Raises: ValueError if the file holds other pictures than these."""
        try:
            common, *pictures = [dict(parse_json(line)) for line in made_of.splitlines()]
            counts = [common[name] for name in ("count", "height", "width")]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} says nothing of how it was drawn; choose another --output") from error
        if counts != [self.count, self.height, self.width] or len(pictures) != self.count:
            here = f"{self.count} of {self.height} x {self.width} pixels"
            there = "{} of {} x {}".format(*counts)
            raise ValueError(f"{path} is of {there} pictures instead of {here}; {CHOOSE}")
        for number, picture in enumerate(pictures):
            if difference := find_difference(common | picture, self.describe(number)):
                raise ValueError(f"{path}: picture {number} was drawn with {difference}; {CHOOSE}")


def _read_made_of(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(MADE_OF)
    except (zipfile.BadZipFile, KeyError):
        return b""
