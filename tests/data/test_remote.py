import logging
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.train import DataConfig
from diffmoe_scale.data import remote as remote_module
from diffmoe_scale.data.index import INDEX_SUFFIX, ShardCatalog, expand_patterns
from diffmoe_scale.data.remote import RemoteShards
from diffmoe_scale.data.shards import LOOKED_AT_REMOTE_SHARDS, Reader, build_reader
from tests.data.samples import all_keys, read_batches, write_shards

COUNTS = [5, 2, 7, 3, 4, 6]


class Server(ThreadingHTTPServer):
    """Serves a folder. Of all connections every `dropped_every`-th is cut in the middle of the answer, or `stalled_every`-th hangs."""

    dropped_every = stalled_every = 0
    requests: Counter[str]

    def __init__(self, folder: Path) -> None:
        self.requests, self.released, self.counting = Counter(), threading.Event(), threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        with self.server.counting:
            self.server.requests[self.path] += 1
            number = self.server.requests.total()
        if self.server.dropped_every and number % self.server.dropped_every == 0:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif self.server.stalled_every and number % self.server.stalled_every == 0:
            self.server.released.wait(30)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    (tmp_path / "served").mkdir()
    write_shards(tmp_path / "served", COUNTS)
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def _remote(folder: Path, **settings: object) -> RemoteShards:
    return RemoteShards(folder / "cache", **({"limit_bytes": 1 << 30, "attempts": 4, "stall_timeout_s": 20.0} | settings))


def _reader(folder: Path, pattern: str, **settings: object) -> Reader:
    options = {"cache_folder": str(folder / "cache"), "shuffle_block": 2, "stall_timeout_s": 20.0} | settings
    return build_reader(DataConfig(**options), [pattern], model=ModelConfig(image_size=4), seed=3)


def _keys(reader: Reader, *, start_sample: int = 0, number: int = sum(COUNTS) // 3) -> list[str]:
    batches = read_batches(reader, start_sample=start_sample, global_batch=3, micro_batch=3)
    return [key for batch in islice(batches, number) for key, weight in zip(batch.keys, batch.weight_B, strict=True) if weight == 1]


def _copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*/copy/*"))


def test_shards_behind_a_server_are_read_in_the_order_of_local_ones(tmp_path: Path, server: Server) -> None:
    local = _keys(_reader(tmp_path, f"{tmp_path}/served/shard-{{000..005}}.tar"))
    assert _keys(_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")) == local and set(local) == all_keys(COUNTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_drops_every_third_connection_costs_retries_and_no_sample(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    # 12 so far, so that the third from here is a multiple of 3.
    before = server.requests.total()
    server.dropped_every = 3
    reader = _reader(tmp_path, pattern, workers=workers)
    assert Counter(_keys(reader)) == dict.fromkeys(all_keys(COUNTS), 1)
    # Every third connection failed, and each is one retry, whichever process made it.
    assert reader.counts["retry"] == (server.requests.total() - before) // 3 >= 2 and reader.bad_samples == 0
    assert "the transfer broke off" in caplog.text and "attempt 2 of 6" in caplog.text


def test_a_server_that_stalls_is_left_after_the_timeout_and_asked_again(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    pattern = f"{server.url}/shard-{{000..002}}.tar"
    _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    server.stalled_every = 4
    reader = _reader(tmp_path, pattern, stall_timeout_s=1.0)
    assert Counter(_keys(reader, number=sum(COUNTS[:3]) // 3 + 1)).keys() == all_keys(COUNTS[:3])
    assert reader.bad_samples == 0 and reader.counts["retry"] >= 1 and "no byte came for 1 s" in caplog.text


def test_a_shard_that_is_not_there_is_an_error_at_once(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=r"the server has no http.*none\.tar"):
        _reader(tmp_path, f"{server.url}/none.tar")
    assert server.requests["/none.tar"] == 1


def test_an_index_beside_the_shard_saves_the_pass_over_it(tmp_path: Path, server: Server) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    remote = _remote(tmp_path)
    catalog = ShardCatalog(expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote), remote=remote)
    assert catalog.counts == COUNTS and catalog.index(2).key(6) == "2_6" and _copies(tmp_path) == []
    assert server.requests == {f"/shard-{number:03d}.tar{INDEX_SUFFIX}": 1 for number in range(6)}


def test_without_an_index_beside_it_a_shard_is_indexed_once(tmp_path: Path, server: Server) -> None:
    for _ in range(2):
        remote = _remote(tmp_path)
        assert ShardCatalog(expand_patterns([f"{server.url}/shard-001.tar"], remote), remote=remote).counts == [2]
    assert server.requests == {f"/shard-001.tar{INDEX_SUFFIX}": 1, "/shard-001.tar": 1}


def test_copies_keep_to_their_limit_and_indexes_stay(tmp_path: Path, server: Server) -> None:
    sizes = [path.stat().st_size for path in sorted((tmp_path / "served").glob("*.tar"))]
    limit = 2 * max(sizes)
    remote = _remote(tmp_path, limit_bytes=limit)
    catalog = ShardCatalog(expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote), remote=remote)
    for shard in (0, 1, 2, 3, 0, 4, 5, 0):
        descriptor = catalog.open(shard)
        assert sum(path.stat().st_size for path in _copies(tmp_path)) <= limit and os.fstat(descriptor).st_size == sizes[shard]
        os.close(descriptor)
    # The one used last is among those kept.
    assert any(path.name == "shard-000.tar" for path in _copies(tmp_path))
    assert len(list(tmp_path.glob(f"cache/*/*{INDEX_SUFFIX}"))) == 6


def test_a_cache_smaller_than_what_is_read_together_is_an_error(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=r"data\.cache_gib is 1e-05.*data\.shuffle_block \(2\).*raise data\.cache_gib"):
        _reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar", cache_gib=1e-5)


def test_a_run_reads_on_when_the_cache_is_emptied(tmp_path: Path, server: Server) -> None:
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    expected = _keys(_reader(tmp_path, pattern))
    reader = _reader(tmp_path, pattern)
    first = _keys(reader, number=4)
    for copy in _copies(tmp_path):
        copy.unlink()
    assert first + _keys(reader, start_sample=12, number=5) == expected


def test_a_look_at_some_samples_fetches_few_shards(tmp_path: Path, server: Server) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    _reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")
    assert 1 <= len(_copies(tmp_path)) <= LOOKED_AT_REMOTE_SHARDS


def test_a_shard_that_changed_behind_its_index_is_a_read_failure_and_named(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    pattern = f"{server.url}/shard-{{000..001}}.tar"
    reader = _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    write_shards(tmp_path / "served", [5, 9])
    reader = _reader(tmp_path, pattern, fetch_attempts=2)
    assert set(_keys(reader, number=3)) == all_keys([5, 0])
    assert reader.counts["read"] == 2 and "its index says" in caplog.text
    # Asked twice for the first sample, and no more for the others.
    assert server.requests["/shard-001.tar"] == 3


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS)
    reader = _reader(tmp_path, f"pipe:cat {tmp_path}/shard-{{000..005}}.tar | cat")
    assert set(_keys(reader)) == all_keys(COUNTS)


def test_a_pipe_whose_first_command_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    remote = _remote(tmp_path, attempts=2)
    with pytest.raises(OSError, match=r"pipe:\(echo -n abc.* broke off after 3 bytes \(exit code 7\)"):
        ShardCatalog(expand_patterns(["pipe:(echo -n abc; exit 7) | cat"], remote), remote=remote)
    assert len(remote.retried) == 1 and list(tmp_path.rglob("unfinished")) == []


def test_a_stalled_pipe_is_killed_with_its_children(tmp_path: Path) -> None:
    remote = _remote(tmp_path, attempts=1, stall_timeout_s=0.5)
    with pytest.raises(TimeoutError, match=r"no byte came for 0\.5 s"):
        ShardCatalog(expand_patterns([f"pipe:(echo $BASHPID > {tmp_path}/pid; exec sleep 60) | cat"], remote), remote=remote)
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(int((tmp_path / "pid").read_text()))


def _wait_until_gone(process: int) -> None:
    """Raises: ProcessLookupError as soon as the process is gone."""
    for _ in range(100):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            raise ProcessLookupError(process)
        threading.Event().wait(0.1)


def test_s3_goes_through_the_command_of_its_vendor() -> None:
    assert remote_module._handled("s3://bucket/a b.tar") == (
        """pipe:exec setsid bash -o pipefail -c 'aws s3 cp --only-show-errors '"'"'s3://bucket/a b.tar'"'"' -'"""
    )


def test_a_copy_in_another_process_finds_what_was_fetched(tmp_path: Path, server: Server) -> None:
    reader = _reader(tmp_path, f"{server.url}/shard-000.tar")
    source = pickle.loads(pickle.dumps(reader.source))
    assert source.load(0).failure is None and server.requests["/shard-000.tar"] == 1


def test_the_log_says_that_no_index_was_found(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _reader(tmp_path, f"{server.url}/shard-000.tar")
    assert f"no index beside {server.url}/shard-000.tar" in caplog.text
