"""Pictures that look the same. The only file that imports imagehash."""

from collections.abc import Iterable
from itertools import pairwise

import imagehash
import numpy as np
from PIL import Image

HASH_BITS = 64
# Equal outlines in other colours are other pictures.
MAX_COLOR_DISTANCE = 12
Look = tuple[int, tuple[int, int, int]]


def look_of(image: Image.Image) -> Look:
    """A 64-bit perceptual hash of brightness (imagehash.phash) and the mean colour. Of an RGB picture."""
    red, green, blue = (
        round(float(mean)) for mean in np.asarray(image.resize((8, 8), Image.Resampling.BOX)).mean((0, 1))
    )
    return int(str(imagehash.phash(image)), 16), (red, green, blue)


def find_duplicates(looks: Iterable[Look], *, max_distance: int) -> list[int]:
    """For each look the number of the first one that differs in at most `max_distance` bits and has nearly
    the same colour; itself if new.

    Hashes that differ in d bits are equal in one of d + 1 parts, so only those that share a part are
    compared.
    """
    parts = max_distance + 1
    edges = [HASH_BITS * part // parts for part in range(parts + 1)]
    known: list[dict[int, list[int]]] = [{} for _ in range(parts)]
    seen, firsts = [], []
    for number, look in enumerate(looks):
        seen.append(look)
        values = [(look[0] >> low) & ((1 << (high - low)) - 1) for low, high in pairwise(edges)]
        candidates = {
            other for part, value in zip(known, values, strict=True) for other in part.get(value, [])
        }
        first = min(
            (other for other in candidates if _is_alike(look, seen[other], max_distance)), default=number
        )
        firsts.append(first)
        if first == number:
            for part, value in zip(known, values, strict=True):
                part.setdefault(value, []).append(number)
    return firsts


def _is_alike(look: Look, other: Look, max_distance: int) -> bool:
    if (look[0] ^ other[0]).bit_count() > max_distance:
        return False
    return all(abs(a - b) <= MAX_COLOR_DISTANCE for a, b in zip(look[1], other[1], strict=True))
