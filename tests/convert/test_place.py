"""A target is complete or not there."""

import os
import shutil
from pathlib import Path

import pytest

from diffmoe_scale.convert.place import check_target, new_target


def test_a_target_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a"
    with new_target(target, num_bytes=1) as path:
        path.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x" and os.listdir(target.parent) == ["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_target(tmp_path / "a", num_bytes=1) as path:
        path.mkdir()
        (path / "b").write_text("x")
        raise RuntimeError
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    match kind:
        case "file":
            target.write_text("old")
        case "folder":
            target.mkdir()
        case "link":
            target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="exists; nothing is overwritten"), new_target(target, num_bytes=1):
        raise AssertionError
    assert os.listdir(tmp_path) == ["a"]


def test_a_target_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"), new_target(tmp_path / "a", num_bytes=1) as path:
        path.write_text("new")
        (tmp_path / "a").write_text("old")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_refused_before_the_work(tmp_path: Path) -> None:
    too_many = shutil.disk_usage(tmp_path).total
    with pytest.raises(ValueError, match="free space there"), new_target(tmp_path / "a", num_bytes=too_many):
        raise AssertionError
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_is_removed_but_not_what_another_makes(tmp_path: Path) -> None:
    (tmp_path / "a.dead.unfinished").mkdir()
    (tmp_path / "b.dead.unfinished").mkdir()
    with new_target(tmp_path / "a", num_bytes=1) as first:
        assert not (tmp_path / "a.dead.unfinished").exists()
        first.write_text("1")
        with (
            pytest.raises(ValueError, match="exists"),
            new_target(tmp_path / "a", num_bytes=1) as second,
        ):
            second.write_text("2")
            assert first.exists()
            (tmp_path / "a").write_text("3")
        (tmp_path / "a").unlink()
    assert (tmp_path / "a").read_text() == "1" and (tmp_path / "b.dead.unfinished").exists()


def test_a_target_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "a", source=tmp_path / "run")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    for target, reason in (
        (tmp_path / "file", "file exists; nothing is overwritten"),
        (tmp_path / "file" / "a", "file is a file; choose another"),
        (Path("/proc/a"), "TO: /proc/a cannot be written"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_target(target, source=tmp_path / "run")


def test_a_target_in_a_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    """The source stays as it is; a run's own folder has room for other files."""
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "link").symlink_to(copy / "checkpoints")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").touch()
    check_target(copy / "a.safetensors", source=copy)
    for folder in (
        copy / "checkpoints",
        copy / "checkpoints" / "step_00000010" / "new",
        tmp_path / "link",
        tmp_path / "export",
    ):
        for source in (copy, tmp_path / "other"):
            with pytest.raises(ValueError, match="a checkpoint, which stays as it is"):
                check_target(folder / "a.safetensors", source=source)
    (tmp_path / "diffusers").mkdir()
    with pytest.raises(ValueError, match="stays as it is"):
        check_target(tmp_path / "diffusers" / "a", source=tmp_path / "diffusers")


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("a.safetensors", "diffusers", "writes a folder"),
        ("a.pt", "megatron", "writes a folder"),
        ("a.SAFETENSORS", "", "a file that is not written here"),
        ("a.gguf", "", "a file that is not written here"),
    ],
)
def test_a_name_of_another_kind_is_refused(name: str, to: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check_target(tmp_path / name, source=tmp_path / "run", to=to)
    check_target(tmp_path / "model-v1.5", source=tmp_path / "run", to=to)
