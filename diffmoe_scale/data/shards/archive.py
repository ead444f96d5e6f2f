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

# Headers that say something about the next one.
EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


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
        data = position + BLOCK + _sparse_map_size(descriptor, block, position, header.type)
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
            loss = _loss(header, extension)
            if loss:
                yield Problem(loss, header.name)
            elif header.type in tarfile.REGULAR_TYPES:
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
    if header.type not in EXTENSIONS:
        header.name = extension.get("GNU.sparse.name", extension.get("path", header.name))
    if header.type in tarfile.REGULAR_TYPES:
        size = extension.get("size", "")
        header.size = int(size) if size.isdecimal() else header.size
    return header if header.size >= 0 else None


def _loss(header: tarfile.TarInfo, extension: dict[str, str]) -> str:
    """Why a member has no bytes that can be read at an offset; "" for one that has, and for folders."""
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extension):
        return "sparse member"
    if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return "link"
    return "device" if header.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE) else ""


def _sparse_map_size(descriptor: int, block: bytes, position: int, kind: bytes) -> int:
    """Bytes between the header of a sparse member and its data: further blocks of its map."""
    size, is_continued = 0, kind == tarfile.GNUTYPE_SPARSE and block[482:483] == b"\1"
    while is_continued:
        size += BLOCK
        is_continued = os.pread(descriptor, 1, position + size + 504) == b"\1"
    return size


def _stored_size(header: tarfile.TarInfo) -> int:
    """Bytes that follow the header."""
    return 0 if header.type in STORES_NOTHING else header.size


def _read_extension(payload: bytes, kind: bytes) -> dict[str, str]:
    """Name and size of the next member: a GNU long name, or the records "LENGTH KEY=VALUE\\n" of a pax
    header."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    records = {}
    while found := re.match(rb"(\d{1,9}) ([^=\n]+)=", payload):
        length = int(found[1])
        if length <= found.end():
            break
        name = found[2].decode("utf-8", "surrogateescape")
        records[name] = payload[found.end() : length - 1].decode("utf-8", "surrogateescape")
        payload = payload[length:]
    return {
        name: value
        for name, value in records.items()
        if name in ("path", "size") or name.startswith("GNU.sparse.")
    }


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
