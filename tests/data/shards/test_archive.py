import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmoe_scale.data.shards.archive import BLOCK, Member, Problem, iterate_members
from tests.data.samples import header_offset, overwrite

FILES = {f"{number}.png": bytes([number]) * (300 * number + 1) for number in range(8)}


def _write(path: Path, files: dict[str, bytes] = FILES, *, archive_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=archive_format) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def _read(path: Path) -> tuple[dict[str, bytes], list[Problem]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        items = list(iterate_members(descriptor))
        members = [item for item in items if isinstance(item, Member)]
        return {member.name: os.pread(descriptor, member.size, member.offset) for member in members}, [
            item for item in items if isinstance(item, Problem)
        ]
    finally:
        os.close(descriptor)


def _without(*names: str) -> dict[str, bytes]:
    return {name: data for name, data in FILES.items() if name not in names}


@pytest.mark.parametrize("archive_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_good_file_are_all_found(tmp_path: Path, archive_format: int) -> None:
    files = FILES | {"folder/" + "deep/" * 18 + "long.txt": b"long name", "empty.txt": b""}
    assert _read(_write(tmp_path / "a.tar", files, archive_format=archive_format)) == (files, [])


@pytest.mark.parametrize("archive_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_are_read(tmp_path: Path, archive_format: int) -> None:
    files = {"grüße/" + "ü" * 200 + ".png": b"unicode", "x" * 300 + ".txt": b"ascii", "short.txt": b"after"}
    assert _read(_write(tmp_path / "a.tar", files, archive_format=archive_format)) == (files, [])


def test_folders_are_no_members_and_links_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            header = tarfile.TarInfo(name)
            # A hard link may state the size of its target without storing a byte.
            header.type, header.linkname, header.size = kind, "target", 700 if kind == tarfile.LNKTYPE else 0
            archive.addfile(header)
        header = tarfile.TarInfo("file.txt")
        header.size = 4
        archive.addfile(header, io.BytesIO(b"data"))
    links = [Problem("link", "link"), Problem("link", "hard")]
    assert _read(tmp_path / "a.tar") == ({"file.txt": b"data"}, links)


def test_a_broken_header_costs_one_member(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tar")
    position = header_offset(path, "3.png")
    overwrite(path, position + 130, b"\xff" * 20)
    members, problems = _read(path)
    assert members == _without("3.png")
    assert (
        [problem.kind for problem in problems] == ["broken header"]
        and f"byte {position}" in problems[0].name
        and "3.png" in problems[0].name
    )


def test_members_behind_a_zeroed_region_are_found(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tar")
    first, last = header_offset(path, "2.png"), header_offset(path, "5.png")
    overwrite(path, first, bytes(last - first))
    members, problems = _read(path)
    assert members == _without("2.png", "3.png", "4.png") and [problem.kind for problem in problems] == [
        "broken header"
    ]


def test_members_behind_lost_bytes_are_found_off_the_block_grid(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tar")
    data, position = path.read_bytes(), header_offset(path, "4.png")
    path.write_bytes(data[: position + 100] + data[position + 333 :])
    members, problems = _read(path)
    assert members == _without("4.png") and [problem.kind for problem in problems] == ["broken header"]


def test_a_size_beyond_the_end_costs_one_member(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tar")
    header = tarfile.TarInfo("2.png")
    header.size = 1 << 30
    overwrite(path, header_offset(path, "2.png"), header.tobuf(tarfile.USTAR_FORMAT))
    assert _read(path) == (_without("2.png"), [Problem("truncated member", "2.png")])


@pytest.mark.parametrize(
    ("beyond_header", "problem"),
    [(100, "broken header"), (BLOCK + 50, "truncated member"), (0, "no end mark")],
)
def test_a_file_cut_off_keeps_what_stands_before(tmp_path: Path, beyond_header: int, problem: str) -> None:
    path = _write(tmp_path / "a.tar")
    os.truncate(path, header_offset(path, "5.png") + beyond_header)
    members, problems = _read(path)
    assert members == _without("5.png", "6.png", "7.png") and [found.kind for found in problems][:1] == [
        problem
    ]


def test_a_file_without_a_byte_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    members, problems = _read(tmp_path / "a.tar")
    assert members == {} and [problem.kind for problem in problems] == ["empty file"]


def test_a_file_that_is_no_archive_has_one_problem(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>" * 100)
    members, problems = _read(tmp_path / "a.tar")
    assert members == {} and [problem.kind for problem in problems] == ["not a tar file"]


# The folder is shared by the examples; each writes the file anew.
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 14_000), damage=st.binary(min_size=1, max_size=3_000))
def test_members_with_an_intact_header_survive_any_damage(tmp_path: Path, start: int, damage: bytes) -> None:
    path = _write(tmp_path / "a.tar", archive_format=tarfile.USTAR_FORMAT)
    size = path.stat().st_size
    headers = {name: header_offset(path, name) for name in FILES}
    overwrite(path, start, damage[: max(0, size - start)])
    members, _ = _read(path)
    intact = {
        name for name, offset in headers.items() if offset + BLOCK <= start or offset >= start + len(damage)
    }
    assert intact <= members.keys() and members.keys() <= FILES.keys()
    untouched = {
        name
        for name in intact
        if headers[name] + BLOCK + len(FILES[name]) <= start or headers[name] >= start + len(damage)
    }
    assert all(members[name] == FILES[name] for name in untouched)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=60),
    archive_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_no_damage_raises_or_leads_outside_the_file(
    tmp_path: Path, flips: list[tuple[int, int]], archive_format: int
) -> None:
    path = _write(
        tmp_path / "a.tar",
        {"n" * 120 + f"{name}": data[:200] for name, data in FILES.items()},
        archive_format=archive_format,
    )
    data = bytearray(path.read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        members = [item for item in iterate_members(descriptor) if isinstance(item, Member)]
    finally:
        os.close(descriptor)
    assert all(member.size >= 0 and member.offset + member.size <= len(data) for member in members)


def test_keywords_of_a_pax_header_may_hold_any_sign(tmp_path: Path) -> None:
    name = "n" * 150 + ".txt"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo(name)
        header.size = 4
        header.pax_headers = {"SCHILY.xattr.user.my-tag": "x", "LIBARCHIVE.a:b#c": "a\nb=c", "\u00e9 x": "y"}
        archive.addfile(header, io.BytesIO(b"data"))
    assert _read(tmp_path / "a.tar") == ({name: b"data"}, [])


@pytest.mark.parametrize("kind", ["gnu", "posix"])
@pytest.mark.parametrize("holes", [1, 40])
def test_sparse_members_are_named_and_what_follows_is_read(tmp_path: Path, kind: str, holes: int) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for hole in range(holes):
            file.seek(hole * 200_000 + 100_000)
            file.write(b"x" * 4096)
    (tmp_path / "b.txt").write_bytes(b"data")
    command = ["tar", f"--format={kind}", "-S", "-cf", "a.tar", "sparse", "b.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert _read(tmp_path / "a.tar") == ({"b.txt": b"data"}, [Problem("sparse member", "sparse")])
