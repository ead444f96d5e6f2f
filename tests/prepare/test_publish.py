import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.prepare.publish import begin, publish, write_shard
from diffmoe_scale.prepare.sources import FILE, Sources
from tests.data.samples import make_sample

MANIFEST = "set.json"


def start(
    output: Path, sources: Sources | None = None, *, is_overwritten: bool = False, **made_with: object
) -> Path | None:
    return begin(
        output,
        manifest=MANIFEST,
        made_with=made_with,
        sources=sources or Sources({}),
        is_overwritten=is_overwritten,
    )


def write(folder: Path, name: str = "a.tar") -> None:
    write_shard(folder / name, [{"__key__": "1", **make_sample(0, 0)}])


def test_a_set_appears_when_it_is_published_with_its_index(tmp_path: Path) -> None:
    folder = start(tmp_path / "out", seed=1)
    assert folder is not None
    write(folder)
    assert not (tmp_path / "out").exists()
    publish(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        MANIFEST,
        FILE,
        "a.tar",
        "a.tar.index.npz",
    }
    before = (tmp_path / "out" / "a.tar.index.npz").stat()
    # The index still belongs to the renamed shard: it is not made anew.
    assert (
        ShardCatalog([tmp_path / "out" / "a.tar"]).counts == [1]
        and (tmp_path / "out" / "a.tar.index.npz").stat() == before
    )
    assert start(tmp_path / "out", seed=1) is None


def test_the_same_call_goes_on_and_another_one_must_ask(tmp_path: Path) -> None:
    folder = start(tmp_path / "out", seed=1, resize=0)
    assert folder is not None
    write(folder)
    assert start(tmp_path / "out", seed=1, resize=0) == folder and (folder / "a.tar").is_file()
    with pytest.raises(ValueError, match=r"begun with other arguments or files \(seed: 1 there, 2 now\)"):
        start(tmp_path / "out", seed=2, resize=0)
    assert start(tmp_path / "out", seed=2, is_overwritten=True) == folder and not (folder / "a.tar").exists()


def test_an_earlier_set_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = start(tmp_path / "out", seed=seed, is_overwritten=True)
        assert folder is not None
        write(folder, f"{seed}.tar")
        publish(tmp_path / "out")
        publish(tmp_path / "out")  # another rank, later
    assert (tmp_path / "out" / "2.tar").is_file() and not (tmp_path / "out" / "1.tar").exists()
    with pytest.raises(ValueError, match="--overwrite"):
        start(tmp_path / "out", seed=3)


def test_a_shard_that_breaks_off_is_not_there(tmp_path: Path) -> None:
    def samples() -> Iterator[dict[str, object]]:
        yield {"__key__": "1", **make_sample(0, 0)}
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_shard(tmp_path / "a.tar", samples())
    assert not (tmp_path / "a.tar").exists()


def test_a_shard_without_a_sample_is_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == []


def test_shards_of_an_unknown_beginning_are_not_gone_on_with(tmp_path: Path) -> None:
    folder = start(tmp_path / "out", seed=1)
    assert folder is not None
    write(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"holds shards and no set\.json"):
        start(tmp_path / "out", seed=1)


def test_other_sources_are_named(tmp_path: Path) -> None:
    start(tmp_path / "out", Sources({"a": "1 bytes", "b": "2 bytes"}))
    with pytest.raises(ValueError, match=r"files: 1 changed \(b\); 1 new \(c\); 1 gone \(a\)"):
        start(tmp_path / "out", Sources({"b": "3 bytes", "c": "1 bytes"}))


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_process_that_is_killed_while_it_publishes_loses_nothing(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the two renames, over an earlier set."""
    output, rename = tmp_path / "out", os.rename
    for seed in (1, 2):
        folder = start(output, seed=seed, is_overwritten=True)
        assert folder is not None
        write(folder, f"{seed}.tar")
        if seed == 1:
            publish(output)
    renames = []

    def killed(*names: Path) -> None:
        renames.append(names)
        if len(renames) == killed_at:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(output)
    monkeypatch.undo()
    if killed_at == 1:
        again = start(output, seed=2, is_overwritten=True)
        assert again is not None and (again / "2.tar").is_file() and (output / "1.tar").is_file()
        publish(output)
    assert start(output, seed=2) is None and (output / "2.tar").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_argument_that_is_no_longer_given_makes_another_set(tmp_path: Path) -> None:
    folder = start(tmp_path / "out", classes=["a"])
    assert folder is not None
    with pytest.raises(
        ValueError, match=r'begun with other arguments or files \(classes: \["a"\] there, null'
    ):
        start(tmp_path / "out", classes=None)
    write(folder)
    publish(tmp_path / "out")
    with pytest.raises(ValueError, match=r"made with other arguments or files \(classes"):
        start(tmp_path / "out", classes=None)


def test_a_shard_has_its_index_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(old: Path, new: Path) -> None:
        if new == tmp_path / "a.tar":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert not (tmp_path / "a.tar").exists() and (tmp_path / "a.tar.index.npz").is_file()


def test_a_disk_of_its_own_is_refused_before_the_work() -> None:
    with pytest.raises(ValueError, match="--output /proc is a disk of its own, which no folder can replace"):
        start(Path("/proc"))


def test_ranks_that_begin_anew_at_once_remove_one_folder_only(tmp_path: Path) -> None:
    folder = start(tmp_path / "out", seed=1)
    assert folder is not None
    write(folder)
    program = (
        "import sys; from pathlib import Path; from tests.prepare.test_publish import start, write\n"
        "folder = start(Path(sys.argv[1]), seed=2, is_overwritten=True); write(folder, sys.argv[2])"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "out")]
    ranks = [subprocess.Popen([*words, f"{rank}.tar"]) for rank in range(4)]
    assert [rank.wait(120) for rank in ranks] == [0] * 4
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"{rank}.tar" for rank in range(4)]


def test_sets_are_made_where_folders_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for seed in (1, 2):
        folder = start(tmp_path / "out", seed=seed)
        assert folder is not None
        folder = start(tmp_path / "out", seed=seed + 1, is_overwritten=True)
        assert folder is not None
        write(folder)
        publish(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert not list(tmp_path.iterdir())
