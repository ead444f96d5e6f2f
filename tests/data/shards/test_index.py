import gzip
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset

from diffmoe_scale.data.shards import index as index_module
from diffmoe_scale.data.shards.archive import Problem
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import scan_shard
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.data.shards.sidecar import read_index, stamp_of
from tests.data.samples import header_offset, make_sample, overwrite, write_shard, write_shards


def _beside(path: Path) -> Path:
    return path.with_name(path.name + INDEX_SUFFIX)


def _no_scan(path: Path) -> None:
    raise AssertionError(f"{path} is scanned")


def test_samples_are_those_of_webdatasets_own_reader(tmp_path: Path) -> None:
    samples = {
        "a": {"png": b"1", "txt": b"one", "json": b"{}"},
        "folder.v1/b": {"JPG": b"22", "seg.png": b"333"},
        "__meta__": {"png": b"no sample"},
        "grüße": {"webp": b"4444"},
    }
    path = write_shard(tmp_path / "a.tar", samples)
    descriptor = os.open(path, os.O_RDONLY)
    index = scan_shard(path)
    found = {
        index.key(row): {
            suffix: os.pread(descriptor, span.size, span.offset)
            for suffix, span in index.members(row).items()
        }
        for row in range(len(index))
    }
    os.close(descriptor)
    expected = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    assert found == {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in expected
    }
    assert index.problems == []


def test_a_sample_without_an_image_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shard(tmp_path / "a.tar", {"0": make_sample(0, 0), "1": {"txt": b"alone", "json": b"{}"}})
    index = scan_shard(path)
    assert [index.key(row) for row in range(len(index))] == ["0"] and index.problems == [
        Problem("no image", "1 (has json, txt)")
    ]
    assert str(path) in caplog.text and "no image: 1 (has json, txt)" in caplog.text


def test_of_two_members_with_one_name_the_first_counts(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"0": {"png": b"first", "PNG": b"second"}})
    index = scan_shard(path)
    assert index.members(0)["png"].size == len(b"first") and index.problems == [
        Problem("member twice", "0.PNG")
    ]


def test_a_broken_header_costs_one_sample_and_is_logged_with_shard_and_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = write_shards(tmp_path, [5])
    overwrite(path, header_offset(path, "0_2.png") + 150, b"!" * 8)
    index = scan_shard(path)
    assert [index.key(row) for row in range(len(index))] == ["0_0", "0_1", "0_3", "0_4"]
    assert [problem.kind for problem in index.problems] == ["broken header", "no image"]
    assert str(path) in caplog.text and "0_2.png" in caplog.text


def test_many_problems_are_logged_in_part_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shard(tmp_path / "a.tar", {str(number): {"txt": b"alone"} for number in range(50)})
    assert len(scan_shard(path).problems) == 50
    assert len(caplog.records) == index_module.NAMED_PROBLEMS + 1 and "30 more problems" in caplog.text


def test_an_index_is_written_beside_its_shard_and_read_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_shards(tmp_path, [3, 2])
    first = ShardCatalog(paths)
    expected = [
        [(first.index(shard).key(row), first.index(shard).members(row)) for row in range(count)]
        for shard, count in enumerate(first.counts)
    ]
    monkeypatch.setattr(index_module, "scan_shard", _no_scan)
    second = ShardCatalog(paths)
    assert second.counts == [3, 2] and all(_beside(path).exists() for path in paths)
    assert expected == [
        [(second.index(shard).key(row), second.index(shard).members(row)) for row in range(count)]
        for shard, count in enumerate(second.counts)
    ]


def test_an_index_remembers_problems(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 2], replaced={"0_1": {"txt": b"alone"}})
    assert ShardCatalog(paths).problems == ShardCatalog(paths).problems == {"no image": 1}


def test_a_changed_shard_is_indexed_anew(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2])
    ShardCatalog(paths)
    write_shards(tmp_path, [7])
    assert ShardCatalog(paths).counts == [7]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip file", b"\x93NUMPY"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    paths = write_shards(tmp_path, [4])
    ShardCatalog(paths)
    _beside(paths[0]).write_bytes(damage)
    catalog = ShardCatalog(paths)
    assert (
        catalog.counts == [4]
        and catalog.index(0).key(3) == "0_3"
        and read_index(_beside(paths[0]), stamp_of(paths[0])) is not None
    )


def test_a_cut_index_is_made_anew(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [4])
    ShardCatalog(paths)
    os.truncate(_beside(paths[0]), _beside(paths[0]).stat().st_size // 2)
    assert ShardCatalog(paths).index(0).key(3) == "0_3"


def test_the_index_of_a_shard_in_a_read_only_folder_goes_to_the_index_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").mkdir()
    paths = write_shards(tmp_path / "shards", [3])
    (tmp_path / "shards").chmod(0o555)
    try:
        assert ShardCatalog(paths, index_folder=tmp_path / "indexes").counts == [3]
        assert not _beside(paths[0]).exists() and len(list((tmp_path / "indexes").iterdir())) == 1
        monkeypatch.setattr(index_module, "scan_shard", _no_scan)
        assert ShardCatalog(paths, index_folder=tmp_path / "indexes").index(0).key(2) == "0_2"
    finally:
        (tmp_path / "shards").chmod(0o755)


def test_without_a_place_for_the_index_it_is_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    paths = write_shards(tmp_path, [3])
    tmp_path.chmod(0o555)
    try:
        assert ShardCatalog(paths).index(0).key(2) == "0_2"
    finally:
        tmp_path.chmod(0o755)
    assert "data.index_folder" in caplog.text and not _beside(paths[0]).exists()


def test_catalogs_made_at_once_agree_and_leave_whole_indexes(tmp_path: Path) -> None:
    counts = [number % 4 + 1 for number in range(12)]
    paths = write_shards(tmp_path, counts)
    with ThreadPoolExecutor(4) as pool:
        catalogs = list(pool.map(lambda _: ShardCatalog(paths), range(4)))
    assert all(catalog.counts == counts for catalog in catalogs)
    assert sorted(tmp_path.iterdir()) == sorted([*paths, *map(_beside, paths)])


def test_a_shard_without_a_sample_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path, [2, 0, 3])
    (tmp_path / "zero.tar").touch()
    catalog = ShardCatalog([*paths, tmp_path / "zero.tar"])
    assert catalog.counts == [2, 0, 3, 0] and catalog.problems == {"empty file": 1}
    beside = {path.name for path in tmp_path.glob("*.index.npz")}
    assert not beside & {f"{paths[1].name}.index.npz", "zero.tar.index.npz"} and len(beside) == 2
    assert (
        f"shard {paths[1]} holds no sample" in caplog.text
        and f"shard {tmp_path / 'zero.tar'} holds no sample" in caplog.text
    )


def test_no_sample_in_any_shard_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "zero.tar").touch()
    with pytest.raises(ValueError, match="no sample in 1 shard,"):
        ShardCatalog([tmp_path / "zero.tar"])


def test_a_compressed_shard_is_an_error(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [2])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"compressed \(gzip\).*unpack"):
        ShardCatalog([path])


def test_a_shard_with_other_samples_during_a_run_is_an_error(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2])
    catalog = ShardCatalog(paths)
    write_shards(tmp_path, [5])
    with pytest.raises(RuntimeError, match=r"held 2 samples.*holds 5"):
        catalog.index(0)


def test_a_touched_shard_with_the_same_samples_is_read_on(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2])
    catalog = ShardCatalog(paths)
    os.utime(paths[0], ns=(1, 1))
    assert catalog.index(0).key(1) == "0_1"


def test_keys_that_are_no_utf8_are_shown_with_a_mark(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"a\udcffb": {"png": b"1"}})
    index = scan_shard(path)
    assert index.key(0) == "a\ufffdb" and index.keys.dtype.type is np.bytes_
