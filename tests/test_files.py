"""A file is replaced whole or not at all."""

import os

import pytest

from diffmoe_scale.files import find_obstacle, replace_file


def test_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "config.yaml"
    for data in (b"first", b"second"):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_obstacles_on_the_way_to_a_file_or_folder_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dead").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name, is_folder, obstacle in (
        ("file", False, ""),
        ("new/new/file", False, ""),
        ("folder", True, ""),
        ("new/new", True, ""),
        ("file", True, "file is a file"),
        ("folder", False, "folder is a folder"),
        ("file/x", False, "file is a file"),
        ("file/x/y", True, "file is a file"),
        ("dead/x", False, "dead is a link that leads nowhere"),
        ("x" * 300, False, "File name too long"),
    ):
        found = find_obstacle(tmp_path / name, is_folder=is_folder)
        assert found.endswith(obstacle) and bool(found) == bool(obstacle), (name, found)
    assert "/proc cannot be written to" in find_obstacle(type(tmp_path)("/proc/x/y"), is_folder=True)
    assert sorted(tmp_path.rglob("*")) == before
