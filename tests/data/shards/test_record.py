import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import expand_patterns
from diffmoe_scale.data.shards.record import ShardRecord, log_changes, record_shards
from tests.data.samples import make_sample, write_shard
from tests.data.shards.servers import COUNTS, Server, cached_copies, make_remote

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
    assert level == "INFO" and "written again since the last start, with the same size: 1 shard (" in text


def test_other_bytes_are_a_change_and_a_rewrite_beside_it_is_said_too(tmp_path: Path, messages: Log) -> None:
    write(tmp_path / "a.tar", 3)
    write(tmp_path / "b.tar", 3)
    start(tmp_path)
    before = (tmp_path / "a.tar").stat().st_size
    write_shard(
        tmp_path / "a.tar", {str(row): make_sample(0, row) | {"txt": b"x" * 20_000} for row in range(3)}
    )
    os.utime(tmp_path / "b.tar", ns=(1, 1))
    start(tmp_path)
    (_, changed), (level, rewritten) = told(messages)
    now = (tmp_path / "a.tar").stat().st_size
    assert f"1 shard changed since the last start: a.tar ({before} bytes, now {now})." in changed
    assert level == "INFO" and rewritten.endswith(
        "with the same size: 1 shard (b.tar); their contents may differ"
    )


def test_shards_in_another_order_are_said(tmp_path: Path, messages: Log) -> None:
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for path in paths:
        write(path, 3)
    start(tmp_path)
    record_shards(ShardCatalog(paths[::-1]), tmp_path / "shards.json")
    ((level, text),) = told(messages)
    assert level == "WARNING" and text.startswith("the shards changed their order since the last start")


def test_shards_behind_a_server_are_known_by_url_and_size_without_a_copy(
    tmp_path: Path, server: Server, messages: Log
) -> None:
    for _ in range(2):
        remote = make_remote(tmp_path)
        urls = [f"{server.url}/shard-000.tar"]
        catalog = ShardCatalog(expand_patterns(urls, remote), remote=remote)
        for copy in cached_copies(tmp_path):
            copy.unlink()
        record_shards(catalog, tmp_path / "shards.json")
    assert told(messages) == []
    size = (tmp_path / "served" / "shard-000.tar").stat().st_size
    (record,) = json.loads((tmp_path / "shards.json").read_bytes())["shards"]
    assert record == {"name": urls[0], "samples": COUNTS[0], "bytes": size, "mtime_ns": 0}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "shards": [{"name": 3}]}', '{"schema": 9}', "[" * 9999],
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


def test_changed_validation_shards_are_named_as_such(tmp_path: Path, messages: Log) -> None:
    for name in ("a.tar", "held_out.tar"):
        write(tmp_path / name, 3)
    training, record = ShardCatalog([tmp_path / "a.tar"]), tmp_path / "shards.json"
    record_shards(training, record)  # by an older version, which kept those of training alone
    for _ in range(2):
        record_shards(training, record, validation=ShardCatalog([tmp_path / "held_out.tar"]))
    assert told(messages) == []
    write(tmp_path / "held_out.tar", 2)
    record_shards(training, record, validation=ShardCatalog([tmp_path / "held_out.tar"]))
    ((level, text),) = told(messages)
    assert level == "WARNING" and "loss/validation is of other samples" in text
    assert text.startswith(
        "1 validation shard changed since the last start: held_out.tar (3 samples, now 2). "
    )


def test_a_folder_that_moved_is_said_to_have_moved(tmp_path: Path, messages: Log) -> None:
    (tmp_path / "old").mkdir()
    for number in range(3):
        write(tmp_path / "old" / f"{number}.tar", 3 + number)
    record = tmp_path / "shards.json"
    record_shards(ShardCatalog(sorted((tmp_path / "old").glob("*.tar"))), record)
    (tmp_path / "old").rename(tmp_path / "new")
    record_shards(ShardCatalog(sorted((tmp_path / "new").glob("*.tar"))), record)
    ((level, text),) = told(messages)
    assert level == "INFO" and text == (
        f"3 shards moved since the last start, such as {tmp_path}/old/0.tar to {tmp_path}/new/0.tar: "
        "the same names, samples and sizes"
    )
    (tmp_path / "new").rename(tmp_path / "newer")
    write(tmp_path / "newer" / "1.tar", 9)
    record_shards(ShardCatalog(sorted((tmp_path / "newer").glob("*.tar"))), record)
    (_, moved), (level, changed) = told(messages)
    assert moved.startswith("2 shards moved") and level == "WARNING"
    assert "1.tar is gone (4 samples), 1.tar is new (9 samples)" in changed and "0.tar" not in changed


def test_shards_that_may_have_changed_places_are_not_said_to_have_moved(
    tmp_path: Path, messages: Log
) -> None:
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.tar", 3)
    record = tmp_path / "shards.json"
    record_shards(ShardCatalog([tmp_path / "a" / "0.tar", tmp_path / "b" / "0.tar"]), record)
    record_shards(ShardCatalog([tmp_path / "c" / "0.tar", tmp_path / "d" / "0.tar"]), record)
    ((level, text),) = told(messages)
    assert level == "WARNING" and text.startswith("4 shards changed")


A, B, C = (ShardRecord(f"{folder}/0.tar", samples=3, bytes=9, mtime_ns=1) for folder in "abc")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([A], [replace(B, mtime_ns=2)], ["1 shard moved since the last start, such as a/0.tar to b/0.tar: "]),
        ([A, B], [C], ["3 shards changed since the last start: 0.tar is gone"]),
        ([A], [B, C], ["3 shards changed since the last start: 0.tar is gone"]),
        ([A], [A, B], ["1 shard changed since the last start: 0.tar is new"]),
        ([A, B], [A], ["1 shard changed since the last start: 0.tar is gone"]),
        ([A], [replace(B, bytes=8)], ["2 shards changed since the last start: "]),
        ([A], [replace(B, samples=2)], ["2 shards changed since the last start: "]),
        ([A], [replace(B, name="b/1.tar")], ["2 shards changed since the last start: "]),
    ],
)
def test_only_what_one_shard_alone_can_be_has_moved(
    messages: Log, before: list[ShardRecord], now: list[ShardRecord], said: list[str]
) -> None:
    log_changes(before, now, effect="")
    assert [text[: len(start)] for (_, text), start in zip(told(messages), said, strict=True)] == said
