"""Members of a tar file that may be damaged: one pass over its headers, which goes on behind a broken one."""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
MAGIC = b"ustar"
MAGIC_OFFSET = 257
LONGEST_EXTENSION = 1 << 20
SEARCH_CHUNK = 1 << 20
# Links, folders and devices may state a size all the same.
STORES_NOTHING = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True)
class Member:
    """A regular file inside a tar file: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Problem:
    """Something that is lost: what went wrong, and where or to whom."""

    kind: str
    name: str


def iterate_members(descriptor: int) -> Iterator[Member | Problem]:
    """Regular files of an open tar file in order, and between them what could not be read.

    Behind a broken header or a zeroed region the next valid header is searched at any byte; tar files from
    before 1988 (no `ustar` mark) cannot be searched, they end there.
    """
    end = os.fstat(descriptor).st_size
    if end == 0:
        yield Problem("empty file", "no byte")
        return
    position = 0
    extension: dict[str, str] = {}
    while position < end:
        block = os.pread(descriptor, BLOCK, position)
        header = _parse_header(block, extension)
        if header is None:
            following = _find_header(descriptor, position + 1, end)
            if following is None and not block.strip(b"\0"):
                return
            yield Problem(
                "broken header" if position > 0 or following is not None else "not a tar file",
                _describe(block, position),
            )
            if following is None:
                return
            position, extension = following, {}
            continue
        data = position + BLOCK
        if data + _stored_size(header) > end:
            yield Problem("truncated member", header.name)
            following = _find_header(descriptor, data, end)
            if following is None:
                return
            position, extension = following, {}
            continue
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            extension |= _read_extension(
                os.pread(descriptor, min(header.size, LONGEST_EXTENSION), data), header.type
            )
        else:
            if header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE:
                yield Member(name=header.name, offset=data, size=header.size)
            # Global headers and long link names stand before the file that an extension belongs to as well.
            if header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                extension = {}
        position = data + -(-_stored_size(header) // BLOCK) * BLOCK
    yield Problem("no end mark", f"byte {position}: the file may have been cut off")


def _parse_header(block: bytes, extension: dict[str, str]) -> tarfile.TarInfo | None:
    """The header of a block, or None if it is not a valid one. `extension` replaces name and size."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # type: ignore[arg-type]  # typeshed wants bytearray
    except (tarfile.HeaderError, ValueError):
        return None
    if header.type in tarfile.REGULAR_TYPES:
        header.name = extension.get("path", header.name)
        size = extension.get("size", "")
        header.size = int(size) if size.isdecimal() else header.size
    return header if header.size >= 0 else None


def _stored_size(header: tarfile.TarInfo) -> int:
    """Bytes that follow the header."""
    return 0 if header.type in STORES_NOTHING else header.size


def _read_extension(payload: bytes, kind: bytes) -> dict[str, str]:
    """Name and size of the next member: a GNU long name, or the records "LENGTH KEY=VALUE\\n" of a pax
    header."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    records = {}
    while found := re.match(rb"(\d{1,9}) (\w+(?:\.\w+)*)=", payload):
        length = int(found[1])
        if length <= found.end():
            break
        records[found[2].decode()] = payload[found.end() : length - 1].decode("utf-8", "surrogateescape")
        payload = payload[length:]
    return {name: value for name, value in records.items() if name in ("path", "size")}


def _find_header(descriptor: int, start: int, end: int) -> int | None:
    """The first byte from `start` on where a valid header begins."""
    position = start + MAGIC_OFFSET
    while position < end:
        chunk = os.pread(descriptor, SEARCH_CHUNK + len(MAGIC), position)
        found = chunk.find(MAGIC)
        if found < 0:
            position += SEARCH_CHUNK
            continue
        candidate = position + found - MAGIC_OFFSET
        if _parse_header(os.pread(descriptor, BLOCK, candidate), {}) is not None:
            return candidate
        position += found + 1
    return None


def _describe(block: bytes, position: int) -> str:
    name = block[:100].split(b"\0")[0].decode("ascii", "replace")
    return f"byte {position}" + (f" (perhaps {name!r})" if name.isprintable() and name else "")
