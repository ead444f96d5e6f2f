"""Files that are never seen half written, and whether there is a place for them."""

import os
import tempfile
import uuid
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` the content `data`, whole or not at all, also when the machine goes down. Raises: OSError,
    leaving what was there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def find_obstacle(path: Path, *, is_folder: bool) -> str:
    """Why no file (or folder) can be written at `path`; "" if one can, or is there to be replaced.

    Missing folders on the way count as ones that can be made. Nothing is left behind.
    """
    folder = path if is_folder else path.parent
    try:
        if path.exists() and path.is_dir() != is_folder:
            return f"{path} is a {'folder' if path.is_dir() else 'file'}"
        while not os.path.lexists(folder):
            folder = folder.parent
        if folder.is_symlink() and not folder.exists():
            return f"{folder} is a link that leads nowhere"
        if not folder.is_dir():
            return f"{folder} is a file"
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written to: {error.strerror}"
