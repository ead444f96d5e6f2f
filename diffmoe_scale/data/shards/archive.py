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
RECORDS = (BLOCK, 20 * BLOCK)
"""Sizes that archives are filled up to a multiple of: by Go, Rust and libarchive, by GNU tar and Python."""
LARGEST_SIZE = 1 << 62
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
PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
EXTENSIONS = (*PAX_TYPES, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# Directories of incremental backups and the name of a volume.
NO_FILES = (tarfile.DIRTYPE, b"D", b"V")


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

    Behind a broken header, a zeroed region or an end mark the next valid header is searched at any byte, so
    concatenated files are read on, with a Problem; tar files from before 1988 (no `ustar` mark) cannot be
    searched, they end there. Members that were zeroed from a header on to the end cannot be
    distinguished from the filling of an archive if that is 10 KiB or less.
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
            problem = _describe_gap(descriptor, block, position, following, end)
            if problem is not None:
                yield problem
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
        if header.type in (*PAX_TYPES, tarfile.GNUTYPE_LONGNAME):
            payload = os.pread(descriptor, min(header.size, LONGEST_EXTENSION), data)
            found, is_whole = _read_extension(payload, header.type)
            if not is_whole or header.size > LONGEST_EXTENSION:
                yield Problem("broken extension", f"{header.name}: the next member may have another name")
            extension |= found
        else:
            yield from _read_member(header, data, extension)
            # Global headers and long link names stand before the file that an extension belongs to as well.
            if header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                extension = {}
        position = data + -(-_stored_size(header) // BLOCK) * BLOCK
    yield Problem("no end mark", f"byte {position}: the file may have been cut off")


def _read_member(header: tarfile.TarInfo, data: int, extension: dict[str, str]) -> Iterator[Member | Problem]:
    """The file behind a header, or why there is none; nothing for folders."""
    loss = _loss(header, extension)
    if loss:
        yield Problem(loss, header.name)
    elif header.type in tarfile.REGULAR_TYPES:
        yield Member(name=header.name, offset=data, size=header.size)


def _describe_gap(
    descriptor: int, block: bytes, position: int, following: int | None, end: int
) -> Problem | None:
    """What is lost where no header is; None for the end mark and zeros up to a full record."""
    if block.strip(b"\0") or following is not None:
        is_archive = position > 0 or following is not None
        return Problem("broken header" if is_archive else "not a tar file", _describe(block, position))
    behind = _find_content(descriptor, position, end)
    if behind is not None:
        return Problem("bytes behind the end mark", f"byte {behind} of {end}")
    # Where bytes were lost, the end is anywhere.
    records = [record for record in RECORDS if end % record == 0 or end % BLOCK != 0]
    if end - position <= 2 * BLOCK or any(end - position - 2 * BLOCK < record for record in records):
        return None
    return Problem("zeros to the end", f"byte {position} of {end}: perhaps an interrupted copy")


def _find_content(descriptor: int, start: int, end: int) -> int | None:
    """The first byte from `start` on that is not zero."""
    for position in range(start, end, SEARCH_CHUNK):
        chunk = os.pread(descriptor, SEARCH_CHUNK, position)
        content = chunk.lstrip(b"\0")
        if content:
            return position + len(chunk) - len(content)
    return None


def _parse_header(block: bytes, extension: dict[str, str]) -> tarfile.TarInfo | None:
    """The header of a block, or None if it is not a valid one. `extension` replaces name and size; one that
    no file can have becomes LARGEST_SIZE."""
    try:
        # typeshed wants a bytearray.
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # type: ignore[arg-type]
    except (tarfile.HeaderError, ValueError):
        return None
    if header.type not in EXTENSIONS:
        header.name = extension.get("GNU.sparse.name", extension.get("path", header.name))
    if header.type in tarfile.REGULAR_TYPES:
        digits = re.fullmatch(r"0*([0-9]+)", extension.get("size", str(header.size)))
        if digits is None:
            return None
        # Python refuses to read numbers of thousands of digits.
        header.size = int(digits[1]) if len(digits[1]) < 19 else LARGEST_SIZE
    return header if header.size >= 0 else None


def _loss(header: tarfile.TarInfo, extension: dict[str, str]) -> str:
    """Why a member has no bytes that can be read at an offset; "" for one that has, and for folders."""
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extension):
        return "sparse member"
    if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return "link"
    if header.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        return "device"
    is_known = header.type in (*tarfile.REGULAR_TYPES, *EXTENSIONS, *NO_FILES)
    return "" if is_known else "member of unknown type"


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


def _read_extension(payload: bytes, kind: bytes) -> tuple[dict[str, str], bool]:
    """Name and size of the next member: a GNU long name, or the records "LENGTH KEY=VALUE\\n" of a pax
    header; and whether all of it could be read."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        path = payload.split(b"\0")[0]
        return {"path": path.decode("utf-8", "surrogateescape")} if path else {}, bool(path)
    records = {}
    while found := re.match(rb"(\d{1,9}) ([^=\n]+)=", payload):
        length = int(found[1])
        if length <= found.end() or payload[length - 1 : length] != b"\n":
            break
        name = found[2].decode("utf-8", "surrogateescape")
        records[name] = payload[found.end() : length - 1].decode("utf-8", "surrogateescape")
        payload = payload[length:]
    used = {
        name: value
        for name, value in records.items()
        if name in ("path", "size") or name.startswith("GNU.sparse.")
    }
    return used, not payload.strip(b"\0")


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
