"""Weight files of frozen networks: that they are there, and are the right ones."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any  # what a .pth holds

import torch

READ_AT_ONCE = 2**22


def check_weights(path: Path, *, setting: str, checksum: str, source: str) -> str:
    """The SHA-256 of a weight file.

    `checksum` is how it must begin, "" for any; `source` says where the file comes from. Raises: ValueError
    if it is missing or another file, OSError.
    """
    expected = f" with the SHA-256 {checksum}..." if checksum else ""
    if not path.is_file():
        raise ValueError(f"{setting} is {path}, which is no file; expected {source}{expected}")
    found = sha256_of(path)
    if not found.startswith(checksum.lower()):
        raise ValueError(
            f"{setting} {path} has the SHA-256 {found[:16]}..., expected {checksum}: it is damaged or "
            f"another file; expected {source}"
        )
    return found


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


def read_weights(path: Path, setting: str) -> Any:
    """Raises: ValueError if it is no file of torch's or holds code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{setting} {path} is not read: it is no weight file of torch, or holds more than tensors "
            f"({first})"
        ) from error
