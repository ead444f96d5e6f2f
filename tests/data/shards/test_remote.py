import logging
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.data.reading.reader import LOOKED_AT_REMOTE_SHARDS
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX, expand_patterns
from tests.data.samples import all_keys, write_shards
from tests.data.shards.servers import COUNTS, Server, cached_copies, make_reader, make_remote, read_keys


def test_shards_behind_a_server_are_read_in_the_order_of_local_ones(tmp_path: Path, server: Server) -> None:
    local = read_keys(make_reader(tmp_path, f"{tmp_path}/served/shard-{{000..005}}.tar"))
    assert read_keys(make_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")) == local and set(
        local
    ) == all_keys(COUNTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_drops_every_third_connection_costs_retries_and_no_sample(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    make_reader(tmp_path, pattern)
    for copy in cached_copies(tmp_path):
        copy.unlink()
    before = server.requests.total()
    server.dropped_every = 3
    reader = make_reader(tmp_path, pattern, workers=workers)
    assert Counter(read_keys(reader)) == dict.fromkeys(all_keys(COUNTS), 1)
    # Every third connection failed, and each is one retry, whichever process made it.
    assert (
        reader.judge.counts["retry"] == server.requests.total() // 3 - before // 3 >= 2
        and reader.judge.bad_samples == 0
    )
    assert "the transfer broke off" in caplog.text and "attempt 2 of 6" in caplog.text


def test_a_server_that_stalls_is_left_after_the_timeout_and_asked_again(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"{server.url}/shard-{{000..002}}.tar"
    make_reader(tmp_path, pattern)
    for copy in cached_copies(tmp_path):
        copy.unlink()
    server.stalled_every = 4
    reader = make_reader(tmp_path, pattern, stall_timeout_s=1.0)
    assert Counter(read_keys(reader, number=sum(COUNTS[:3]) // 3 + 1)).keys() == all_keys(COUNTS[:3])
    assert (
        reader.judge.bad_samples == 0
        and reader.judge.counts["retry"] >= 1
        and "no byte came for 1 s" in caplog.text
    )


def test_a_shard_that_is_not_there_is_an_error_at_once(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=r"the server has no http.*none\.tar"):
        make_reader(tmp_path, f"{server.url}/none.tar")
    assert server.requests["/none.tar"] == 1


def test_an_index_beside_the_shard_saves_the_pass_over_it(tmp_path: Path, server: Server) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    remote = make_remote(tmp_path)
    catalog = ShardCatalog(expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote), remote=remote)
    assert catalog.counts == COUNTS and catalog.index(2).key(6) == "2_6" and cached_copies(tmp_path) == []
    assert server.requests == {f"/shard-{number:03d}.tar{INDEX_SUFFIX}": 1 for number in range(6)}


def test_without_an_index_beside_it_a_shard_is_indexed_once(tmp_path: Path, server: Server) -> None:
    for _ in range(2):
        remote = make_remote(tmp_path)
        assert ShardCatalog(
            expand_patterns([f"{server.url}/shard-001.tar"], remote), remote=remote
        ).counts == [2]
    assert server.requests == {f"/shard-001.tar{INDEX_SUFFIX}": 1, "/shard-001.tar": 1}


def test_copies_keep_to_their_limit_and_indexes_stay(tmp_path: Path, server: Server) -> None:
    sizes = [path.stat().st_size for path in sorted((tmp_path / "served").glob("*.tar"))]
    limit = 2 * max(sizes)
    remote = make_remote(tmp_path, limit_bytes=limit)
    catalog = ShardCatalog(expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote), remote=remote)
    for shard in (0, 1, 2, 3, 0, 4, 5, 0):
        descriptor = catalog.open(shard)
        assert (
            sum(path.stat().st_size for path in cached_copies(tmp_path)) <= limit
            and os.fstat(descriptor).st_size == sizes[shard]
        )
        os.close(descriptor)
    # The one used last is among those kept.
    assert any(path.name == "shard-000.tar" for path in cached_copies(tmp_path))
    assert len(list(tmp_path.glob(f"cache/*/*{INDEX_SUFFIX}"))) == 6


def test_a_cache_smaller_than_what_is_read_together_is_an_error(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        ValueError, match=r"data\.cache_gib is 1e-05.*data\.shuffle_block \(2\).*raise data\.cache_gib"
    ):
        make_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar", cache_gib=1e-5)


def test_a_run_reads_on_when_the_cache_is_emptied(tmp_path: Path, server: Server) -> None:
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    expected = read_keys(make_reader(tmp_path, pattern))
    reader = make_reader(tmp_path, pattern)
    first = read_keys(reader, number=4)
    for copy in cached_copies(tmp_path):
        copy.unlink()
    assert first + read_keys(reader, start_sample=12, number=5) == expected


def test_a_look_at_some_samples_fetches_few_shards(tmp_path: Path, server: Server) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    make_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")
    assert 1 <= len(cached_copies(tmp_path)) <= LOOKED_AT_REMOTE_SHARDS


def test_a_shard_that_changed_behind_its_index_is_a_read_failure_and_named(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"{server.url}/shard-{{000..001}}.tar"
    reader = make_reader(tmp_path, pattern)
    for copy in cached_copies(tmp_path):
        copy.unlink()
    write_shards(tmp_path / "served", [5, 9])
    reader = make_reader(tmp_path, pattern, fetch_attempts=2)
    assert set(read_keys(reader, number=3)) == all_keys([5, 0])
    assert reader.judge.counts["read"] == 2 and "its index says" in caplog.text
    # Asked twice for the first sample, and no more for the others.
    assert server.requests["/shard-001.tar"] == 3


def test_a_copy_in_another_process_finds_what_was_fetched(tmp_path: Path, server: Server) -> None:
    reader = make_reader(tmp_path, f"{server.url}/shard-000.tar")
    source = pickle.loads(pickle.dumps(reader.source))
    assert source.load(0).failure is None and server.requests["/shard-000.tar"] == 1


def test_the_log_says_that_no_index_was_found(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_reader(tmp_path, f"{server.url}/shard-000.tar")
    assert f"the server has no {server.url}/shard-000.tar{INDEX_SUFFIX}" in caplog.text
