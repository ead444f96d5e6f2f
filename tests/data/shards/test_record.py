import logging
import os
from pathlib import Path

import pytest

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.record import record_shards
from tests.data.samples import make_sample, write_shard

Log = pytest.LogCaptureFixture


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="diffmoe_scale.data.shards.record")
    return caplog


def start(folder: Path) -> None:
    record_shards(ShardCatalog(sorted(folder.glob("*.tar"))), folder / "shards.json")


def write(path: Path, count: int) -> None:
    write_shard(path, {str(number): make_sample(0, number) for number in range(count)})


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "diffmoe_scale.data.shards.record"
    ]
    caplog.clear()
    return found


def test_first_start_and_unchanged_shards_say_nothing(tmp_path: Path, messages: Log) -> None:
    write(tmp_path / "a.tar", 3)
    start(tmp_path)
    start(tmp_path)
    assert told(messages) == []


def test_other_samples_new_and_missing_shards_are_named(tmp_path: Path, messages: Log) -> None:
    for name, count in (("a.tar", 12), ("b.tar", 3), ("c.tar", 2)):
        write(tmp_path / name, count)
    start(tmp_path)
    write(tmp_path / "a.tar", 5)
    (tmp_path / "b.tar").unlink()
    write(tmp_path / "d.tar", 4)
    start(tmp_path)
    ((level, text),) = told(messages)
    assert level == "WARNING" and text.startswith("3 shards changed since the last start: ")
    for part in ("a.tar (12 samples, now 5)", "b.tar is gone (3 samples)", "d.tar is new (4 samples)"):
        assert part in text
    assert "c.tar" not in text
    start(tmp_path)
    assert told(messages) == []


def test_a_shard_that_was_only_written_again_is_an_information(tmp_path: Path, messages: Log) -> None:
    write(tmp_path / "a.tar", 3)
    start(tmp_path)
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    start(tmp_path)
    ((level, text),) = told(messages)
    assert level == "INFO" and "1 shards were written again" in text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1, "shards": [{"name": 3}]}', '{"schema": 9}', "[" * 9999]
)
def test_a_damaged_record_is_unknown_and_made_anew(tmp_path: Path, messages: Log, text: str) -> None:
    write(tmp_path / "a.tar", 3)
    (tmp_path / "shards.json").write_text(text, encoding="utf-8")
    start(tmp_path)
    ((level, said),) = told(messages)
    assert level == "INFO" and "is not known" in said and "\n" not in said
    start(tmp_path)
    assert told(messages) == []


def test_many_changed_shards_are_counted_and_some_named(tmp_path: Path, messages: Log) -> None:
    for number in range(15):
        write(tmp_path / f"{number:02}.tar", 2)
    start(tmp_path)
    for number in range(15):
        write(tmp_path / f"{number:02}.tar", 3)
    start(tmp_path)
    ((_, text),) = told(messages)
    assert text.startswith("15 shards changed") and "and 5 more" in text


def test_a_file_name_that_is_no_utf8_is_the_same_shard_at_each_start(tmp_path: Path, messages: Log) -> None:
    write(tmp_path / os.fsdecode(b"\xff.tar"), 2)
    start(tmp_path)
    start(tmp_path)
    assert told(messages) == []
