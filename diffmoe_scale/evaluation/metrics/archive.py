"""Archives of numpy (.npz): what goes wrong while one is read becomes a sentence."""

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What zipfile and numpy raise for damaged and encrypted archives, and for unknown kinds of compression."""


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises: ValueError with the path for what is no archive, and for damage found in the block."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place in the file that cannot be
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is no .npz archive, or is damaged or cut off ({reason:.200})")
