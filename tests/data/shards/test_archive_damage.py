"""Valid archives are read as Python's tarfile reads them; of damaged ones nothing goes without a Problem."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from diffmoe_scale.data.shards.archive import BLOCK, Member, Problem, iterate_members
from tests.data.samples import header_offset, overwrite

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SIGNS = "abcxyz019._-/ \u00e9\u4e2d\x1b\n=%"
LAST = 12_000
"""Bytes of the last member: more than an archive is filled up with."""


def _pack(files: dict[str, bytes], archive_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=archive_format) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def _read(path: Path) -> tuple[dict[str, bytes], list[Problem]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        items = list(iterate_members(descriptor))
        members = [item for item in items if isinstance(item, Member)]
        found = {member.name: os.pread(descriptor, member.size, member.offset) for member in members}
        return found, [item for item in items if isinstance(item, Problem)]
    finally:
        os.close(descriptor)


def _kinds(path: Path) -> list[str]:
    return [problem.kind for problem in _read(path)[1]]


def _files(draw: random.Random, longest: int) -> dict[str, bytes]:
    names = {
        "n" + "".join(draw.choices(SIGNS, k=draw.randrange(1, longest))).rstrip("/ ") + f"{number}.png"
        for number in range(draw.randrange(1, 9))
    }
    return {name: draw.randbytes(draw.choice([0, 1, 511, 512, 513, draw.randrange(3000)])) for name in names}


@pytest.mark.slow
def test_a_valid_archive_is_read_as_by_python(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for case in range(240):
        draw = random.Random(case)
        archive_format = FORMATS[case % 3]
        longest = 30 if archive_format == tarfile.USTAR_FORMAT else 300
        path.write_bytes(_pack(_files(draw, longest), archive_format))
        with tarfile.open(path) as archive:
            opened = {member.name: archive.extractfile(member) for member in archive}
            expected = {name: file.read() for name, file in opened.items() if file is not None}
        assert _read(path) == (expected, []), case


def _damage(kind: str, data: bytes, draw: random.Random) -> tuple[bytes, int, int]:
    """Damaged bytes, and the range of the original that they differ in."""
    place = draw.randrange(len(data) - 2 * BLOCK - 1)
    end = min(len(data), place + draw.randrange(1, 4000))
    match kind:
        case "zero the rest":
            return data[:place] + bytes(len(data) - place), place, len(data)
        case "cut":
            return data[:place], place, len(data)
        case "zero":
            return data[:place] + bytes(end - place) + data[end:], place, end
        case "overwrite":
            return data[:place] + draw.randbytes(end - place) + data[end:], place, end
        case "remove":
            return data[:place] + data[end:], place, end
        case "insert":
            return data[:place] + draw.randbytes(draw.randrange(1, 2000)) + data[place:], place, place + 1
        case _:
            flipped = bytearray(data)
            flipped[place] ^= 1 << draw.randrange(8)
            return bytes(flipped), place, place + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero the rest", "cut", "zero", "overwrite", "remove", "insert", "flip"])
def test_of_a_damaged_archive_nothing_is_lost_without_a_problem(tmp_path: Path, kind: str) -> None:
    """Damage inside the bytes of a member whose header is whole is left to decoding; the text of an extension
    has no checksum in a tar file, so one flipped bit may give a member another name."""
    path = tmp_path / "a.tar"
    for case in range(60):
        draw = random.Random(f"{kind} {case}")
        files = _files(draw, 120) | {"last.png": draw.randbytes(LAST)}
        data = _pack(files, FORMATS[1 + case % 2])
        path.write_bytes(data)
        with tarfile.open(path) as archive:
            places = {member.name: (member.offset, member.offset_data, member.size) for member in archive}
        damaged, first, last = _damage(kind, data, draw)
        path.write_bytes(damaged)
        members, problems = _read(path)
        for name, content in files.items():
            start, offset, size = places[name]
            is_hit = first < offset + size and (offset < last if name in members else start < last)
            is_kept = len(members) == len(files)
            assert problems or members.get(name) == content or (is_hit and is_kept), (case, name)


FILES = {f"{number}.png": bytes([number + 1]) * 4000 for number in range(12)}


def test_a_second_half_of_zeros_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = _pack(FILES)
    path.write_bytes(data)
    half = header_offset(path, "6.png")
    path.write_bytes(data[:half] + bytes(len(data) - half))
    members, problems = _read(path)
    assert list(members) == [f"{number}.png" for number in range(6)]
    message = f"byte {half} of {len(data)}: perhaps an interrupted copy"
    assert problems == [Problem("zeros to the end", message)]


@pytest.mark.parametrize("filling", [2 * BLOCK, 20 * BLOCK, 21 * BLOCK])
def test_the_filling_that_programs_write_is_none(tmp_path: Path, filling: int) -> None:
    content = _pack({"a.png": bytes(20 * BLOCK * 3 - BLOCK - filling)})[: 20 * BLOCK * 3 - filling]
    (tmp_path / "a.tar").write_bytes(content + bytes(filling))
    assert _kinds(tmp_path / "a.tar") == []


@pytest.mark.parametrize("behind", [b"x", b"\0" * 5000 + b"x", b"x" * 5000])
def test_bytes_behind_the_end_mark_are_a_problem(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_pack(FILES) + behind)
    members, problems = _read(path)
    assert members == FILES and [problem.kind for problem in problems] == ["bytes behind the end mark"]


def test_concatenated_archives_are_read_on_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_pack(FILES) + _pack({"second.png": b"data"}))
    members, problems = _read(tmp_path / "a.tar")
    assert members == FILES | {"second.png": b"data"}
    assert [problem.kind for problem in problems] == ["broken header"]


def _with_field(path: Path, name: str, *, size: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    """Write a size field as it is, and a type, with a right checksum."""
    position = header_offset(path, name)
    block = bytearray(path.read_bytes()[position : position + BLOCK])
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    overwrite(path, position, bytes(block))


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (b"\xff" * 12, "broken header"),
        (b"\x80" + b"\xff" * 11, "truncated member"),
        (b"\x80" + bytes(10) + b"\x09", ""),
        (b"77777777777\0", "truncated member"),
        (b"not a number", "broken header"),
        (b"-0000000001\0", "broken header"),
    ],
)
def test_sizes_in_headers(tmp_path: Path, size: bytes, problem: str) -> None:
    files = {"0.png": b"0" * 9, "1.png": b"1" * 9, "2.png": b"2" * 9}
    path = tmp_path / "a.tar"
    path.write_bytes(_pack(files))
    _with_field(path, "1.png", size=size)
    members, problems = _read(path)
    kept = files if not problem else {"0.png": b"0" * 9, "2.png": b"2" * 9}
    assert members == kept and [found.kind for found in problems] == ([problem] if problem else [])


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 8 + b"\xff\xff\xf0\x00"])
@pytest.mark.parametrize("kind", [b"Q", tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_size_below_zero_is_a_broken_header_whatever_the_type(
    tmp_path: Path, size: bytes, kind: bytes
) -> None:
    files = {"0.png": b"0" * 9, "1.png": b"1" * 9, "2.png": b"2" * 9}
    path = tmp_path / "a.tar"
    path.write_bytes(_pack(files))
    _with_field(path, "1.png", size=size, kind=kind)
    members, problems = _read(path)
    assert list(members) == ["0.png", "2.png"]
    assert [problem.kind for problem in problems] == ["broken header"]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (str(10**30), "truncated member"),
        ("9" * 6000, "truncated member"),
        ("-1", "broken header"),
        ("1e3", "broken header"),
        ("\u0663", "broken header"),
        ("0" * 5000 + "9", ""),
    ],
)
def test_sizes_in_pax_headers(tmp_path: Path, size: str, problem: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("0.png", "1.png", "2.png"):
            header = tarfile.TarInfo(name)
            header.size = 9
            header.pax_headers = {"size": size} if name == "1.png" else {}
            archive.addfile(header, io.BytesIO(b"123456789"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    members, problems = _read(tmp_path / "a.tar")
    assert list(members) == ["0.png", "1.png", "2.png"] if not problem else ["0.png", "2.png"]
    assert [found.kind for found in problems] == ([problem] if problem else [])


def test_a_pax_header_that_breaks_off_is_a_problem(tmp_path: Path) -> None:
    name = "n" * 150 + ".png"
    path = tmp_path / "a.tar"
    data = _pack({name: b"data"})
    path.write_bytes(data.replace(b" path=", b" pa\0h=").replace(b"164 pa\0h=", b"964 path="))
    members, problems = _read(path)
    assert len(members) == 1 and [problem.kind for problem in problems] == ["broken extension"]


def test_a_long_name_is_that_of_the_next_file_and_of_no_header_between(tmp_path: Path) -> None:
    name, between = "n" * 150 + ".png", b""
    data = _pack({name: b"data"}, tarfile.GNU_FORMAT)
    for kind in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
        header = tarfile.TarInfo("between")
        header.type = kind
        between += header.tobuf()
    (tmp_path / "a.tar").write_bytes(data[: 2 * BLOCK] + between + data[2 * BLOCK : -2 * BLOCK])
    assert _read(tmp_path / "a.tar") == ({name: b"data"}, [])


def test_a_member_of_unknown_type_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("a.png", b"Q"), ("b.png", tarfile.REGTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.size = kind, 4
            archive.addfile(header, io.BytesIO(b"data"))
    members, problems = _read(tmp_path / "a.tar")
    assert members == {"b.png": b"data"} and problems == [Problem("member of unknown type", "a.png")]
