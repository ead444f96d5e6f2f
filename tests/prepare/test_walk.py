import os
from pathlib import Path

import pytest

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.walk import list_files, suffix_of
from tests.prepare.folders import add_picture, prepare, read_captions


def walk(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    losses = Losses()
    return list_files(root, excluded=(), losses=losses), losses.names


def test_linked_folders_are_read_once_and_loops_are_named(tmp_path: Path) -> None:
    root, outside = tmp_path / "photos", tmp_path / "elsewhere"
    add_picture(root, "real/a.png")
    add_picture(outside, "x.png")
    os.symlink(outside, root / "linked")
    os.symlink(outside, root / "linked_again")
    os.symlink(root / "real", root / "same")
    os.symlink(tmp_path, root / "up")
    os.symlink(root, outside / "back")
    os.symlink("round", root / "round")
    files, losses = walk(root)
    assert files == ["linked/x.png", "real/a.png"]
    assert {reason: sorted(names) for reason, names in losses.items()} == {
        "link to a folder that is read already": ["linked/back", "linked_again", "same"],
        "link that leads nowhere": ["round"],
        "link to a folder above, not followed": ["up"],
    }


def test_a_dangling_link_to_a_picture_is_named(tmp_path: Path) -> None:
    add_picture(tmp_path / "photos", "a.png", caption="a")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "photos" / "gone.png")
    (tmp_path / "photos" / "gone.txt").write_text("gone")
    prepared = prepare(tmp_path / "photos", tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"a": "a"}
    (problem,) = prepared.left_out.names["unreadable"]
    assert problem.startswith("'gone.png': FileNotFoundError")


def test_hidden_files_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    add_picture(tmp_path, "a.png")
    add_picture(tmp_path, ".cache/x.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".DS_Store").touch()
    os.mkfifo(tmp_path / "pipe.png")
    assert walk(tmp_path) == (
        ["a.png"],
        {
            "hidden file": ["._a.png"],
            "hidden folder": [".cache"],
            "neither a file nor a folder": ["pipe.png"],
        },
    )


def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_picture(tmp_path, "a.png")
    add_picture(tmp_path, "locked/b.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        # Root may enter all folders.
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert walk(tmp_path) == (
        ["a.png"],
        {"folder that cannot be entered": ["locked: Permission denied"]},
    )


@pytest.mark.parametrize(
    ("name", "suffix"), [("a/b.JPG", "jpg"), ("a.b/c", ""), (".png", ""), ("v1.0.png", "png"), ("a.", "")]
)
def test_suffixes_are_of_the_last_part_in_lower_case(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix
