"""Code that runs when a careless reader loads it, in several formats."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Command(marker))


def torch_archive(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": Command(marker)}, buffer)
    return buffer.getvalue()


def numpy_archive(marker: Path, **others: np.ndarray) -> bytes:
    """Every array that a sidecar has, each of them an object, but for `others`."""
    names = {"header", "keys", "first_member", "suffix", "offset", "size", "sizes", "digest"}
    planted = np.array([Command(marker)], dtype=object)
    buffer = io.BytesIO()
    np.savez(buffer, **(dict.fromkeys(names, planted) | others))  # type: ignore[arg-type]  # of the stub
    return buffer.getvalue()


BINARY = {"pickle": plain_pickle, "torch": torch_archive, "numpy": numpy_archive}


def yaml_tag(marker: Path) -> str:
    return f"run: !!python/object/apply:os.system ['touch {marker}']\n"


def script(marker: Path) -> str:
    """Text that each of several careless readers would run."""
    return f"=cmd|'touch {marker}'!A1 $(touch {marker}) `touch {marker}` __import__('os').mkdir('{marker}')"


def file_of(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
