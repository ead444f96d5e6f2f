"""Keys of samples from the names of pictures."""

import re
import unicodedata
from hashlib import blake2b


def key_stem(name: str) -> str:
    """A path as the key of a sample: without suffix, and without dots, at which webdataset would cut it;
    without anything that a terminal or a file system would act on."""
    stem = re.sub(r"\.[^./\\]*$", "", unicodedata.normalize("NFC", name))
    stem = stem.encode("utf-8", "replace").decode()
    visible = "".join(sign if sign.isprintable() else "\0" for sign in stem)
    return re.sub(r"[./\\\s\0]+", "_", visible) or "image"


class Keys:
    """Keys that were given out; equal ones are numbered."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def take(self, stem: str) -> str:
        """The stem, with the next free number behind it if it was given out before."""
        number = self._last.get(stem, 0) + 1
        key = stem if number == 1 else f"{stem}-{number}"
        while number > 1 and key in self._last:
            number += 1
            key = f"{stem}-{number}"
        self._last[stem] = number
        self._last.setdefault(key, 1)
        return key


def fraction(stem: str) -> float:
    """A hash in [0, 1). Of the stem and not of the unique key, so that rows with the same image fall into one
    split."""
    return int.from_bytes(blake2b(stem.encode(), digest_size=6).digest(), "little") / 2**48
