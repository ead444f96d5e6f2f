"""Space on disks: of what was written, and as users write and read it."""

import re
from pathlib import Path

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size_of(folder: Path) -> int:
    """Bytes of its shards."""
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def parse_size(text: str) -> float:
    """Bytes of a number with K, M, G or T behind it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"--budget is {text!r}; expected bytes, such as 500G")
    return float(found[1]) * UNITS[found[2]]


def show_size(size: float) -> str:
    unit = max((unit for unit, factor in UNITS.items() if factor <= max(1, size)), key=UNITS.__getitem__)
    return f"{size / UNITS[unit]:.3g} {unit}B"
