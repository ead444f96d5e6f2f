import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.data.samples import make_sample
from tests.prepare.folders import add_picture, prepare, read_captions, read_samples

PICTURE = make_sample(0, 0)["png"]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def test_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    members = [
        (f"{stem}.{suffix}", PICTURE if suffix == "png" else stem.encode())
        for stem in ("v1.0", "v1.1", "ok")
        for suffix in ("png", "txt")
    ]
    prepared = prepare(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"v1_0": "v1.0", "v1_1": "v1.1", "ok": "ok"}
    assert not prepared.unused.counts


def test_texts_are_found_wherever_they_lie(tmp_path: Path) -> None:
    members = [
        ("0.png", PICTURE),
        ("1.txt", b"one"),
        ("0.txt", b"zero"),
        ("1.png", PICTURE),
        ("./2.PNG", PICTURE),
        ("2.TXT", b"two"),
    ]
    prepare(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"0": "zero", "1": "one", "2": "two"}


def test_members_of_equal_names_are_all_kept(tmp_path: Path) -> None:
    members = [("0.png", PICTURE), ("0.txt", b"first"), ("0.png", PICTURE), ("0.txt", b"second")]
    prepare(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"0": "first", "0-2": "second"}


def test_further_pictures_of_a_sample_and_hidden_members_are_named(tmp_path: Path) -> None:
    names = ("0.jpg", "0.png", "0.mask.png", "._0.png", "__MACOSX/._0.png", "notes.cls", "1.txt")
    members = [(name, PICTURE) for name in names] + [("0.txt", b"zero")]
    prepared = prepare(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"0": "zero"}
    assert prepared.unused.names == {
        "hidden file": ["x.tar/._0.png", "x.tar/__MACOSX/._0.png"],
        "file of no known kind": ["x.tar/notes.cls"],
        "text without a picture": ["x.tar/1.txt"],
        "further picture of a sample of a tar file": [
            "x.tar/0.jpg: 0.png is taken",
            "x.tar/0.mask.png: 0.png is taken",
        ],
    }


def test_links_and_sparse_members_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (600, 600)).save(tmp_path / "full.bmp")
    sparse = tmp_path / "a.bmp"
    subprocess.run(["cp", "--sparse=always", tmp_path / "full.bmp", sparse], check=True)
    add_picture(tmp_path, "b.png", caption="b")
    (tmp_path / "c.png").symlink_to("b.png")
    (tmp_path / "d.png").hardlink_to(tmp_path / "b.png")
    names = ["a.bmp", "b.png", "b.txt", "c.png", "d.png"]
    subprocess.run(["tar", "-S", "-cf", tmp_path / "x.tar", "-C", tmp_path, *names], check=True)
    prepared = prepare(tmp_path / "x.tar", tmp_path / "out")
    assert set(read_samples(tmp_path / "out")) == {"b"}
    named = " ".join(name for names in prepared.unused.names.values() for name in names)
    assert all(f"x.tar/{name}" in named for name in ("a.bmp", "c.png", "d.png"))


def test_names_that_would_act_on_a_terminal_or_a_folder_are_cleaned(tmp_path: Path) -> None:
    names = ["\x1b[31mred.png", "../../etc/up.png", "/abs/olute.png", "new\nline.png", "‮bidi.png"]
    members = [(name, PICTURE) for name in names] + [("ok.png", PICTURE), ("ok.txt", b"x")]
    members += [("\x1b]0;title\x07.txt", b"x")]
    prepared = prepare(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    keys = set(read_samples(tmp_path / "out"))
    assert keys == {"_[31mred", "_etc_up", "_abs_olute", "new_line", "_bidi", "ok"}
    assert all(line.isprintable() for line in prepared.lines())
    assert "\\x1b" in (tmp_path / "out" / "shards.json").read_text()


def test_a_tar_beside_pictures_does_not_hide_them(tmp_path: Path) -> None:
    for number in range(5):
        add_picture(tmp_path / "photos", f"{number}.png", caption=f"picture {number}")
    write_tar(tmp_path / "photos" / "backup.tar", [("0.png", PICTURE), ("0.txt", b"x")])
    prepared = prepare(tmp_path / "photos", tmp_path / "out")
    assert len(read_samples(tmp_path / "out")) == 5
    (names,) = prepared.unused.names.values()
    assert names == ["backup.tar: give it as --input to read it"]


def test_a_damaged_tar_of_several_is_named_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "0.tar", [("0.png", PICTURE), ("0.txt", b"x")])
    (tmp_path / "set" / "1.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "set" / "2.tar").write_bytes(b"no tar")
    prepared = prepare(tmp_path / "set", tmp_path / "out")
    assert set(read_samples(tmp_path / "out")) == {"0_0"}
    named = " ".join(name for names in prepared.unused.names.values() for name in names)
    assert "1.tar" in named and "2/" in named and "is compressed (gzip)" in named


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ValueError, match=r"x\.tar is compressed \(gzip\)"):
        prepare(tmp_path / "x.tar", tmp_path / "out")
