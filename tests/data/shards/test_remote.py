import logging
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any  # settings of any type

import pytest
import torch
from PIL import Image

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import SET_FILE, FeatureSet, FeatureSource
from diffmoe_scale.data.order.size import SIDECAR, ImageBuckets, find_sizes
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.reader import LOOKED_AT_REMOTE_SHARDS, Reader
from diffmoe_scale.data.shards import remote as remote_module
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX, expand_patterns
from diffmoe_scale.data.shards.remote import RemoteShards
from tests.data.samples import all_keys, encode, pixels_of, read_batches, write_shards

COUNTS = [5, 2, 7, 3, 4, 6]


class Server(ThreadingHTTPServer):
    """Serves a folder. Of all connections every `dropped_every`-th is cut in the middle of the answer, or
    `stalled_every`-th hangs."""

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


def _remote(folder: Path, **settings: Any) -> RemoteShards:
    return RemoteShards(
        folder / "cache", **({"limit_bytes": 1 << 30, "attempts": 4, "stall_timeout_s": 20.0} | settings)
    )


def _reader(folder: Path, pattern: str, buckets: BucketConfig | None = None, **settings: Any) -> Reader:
    options: dict[str, Any] = {
        "cache_folder": str(folder / "cache"),
        "shuffle_block": 2,
        "stall_timeout_s": 20.0,
    } | settings
    return build_reader(
        DataConfig(**options), [pattern], model=ModelConfig(image_size=4), seed=3, buckets=buckets
    )


def _keys(reader: Reader, *, start_sample: int = 0, number: int = sum(COUNTS) // 3) -> list[str]:
    batches = read_batches(reader, start_sample=start_sample, global_batch=3, micro_batch=3)
    return [
        key
        for batch in islice(batches, number)
        for key, weight in zip(batch.keys, batch.weight_B, strict=True)
        if weight == 1
    ]


def _copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*/copy/*"))


def test_shards_behind_a_server_are_read_in_the_order_of_local_ones(tmp_path: Path, server: Server) -> None:
    local = _keys(_reader(tmp_path, f"{tmp_path}/served/shard-{{000..005}}.tar"))
    assert _keys(_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")) == local and set(
        local
    ) == all_keys(COUNTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_drops_every_third_connection_costs_retries_and_no_sample(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    before = server.requests.total()
    server.dropped_every = 3
    reader = _reader(tmp_path, pattern, workers=workers)
    assert Counter(_keys(reader)) == dict.fromkeys(all_keys(COUNTS), 1)
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
    _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    server.stalled_every = 4
    reader = _reader(tmp_path, pattern, stall_timeout_s=1.0)
    assert Counter(_keys(reader, number=sum(COUNTS[:3]) // 3 + 1)).keys() == all_keys(COUNTS[:3])
    assert (
        reader.judge.bad_samples == 0
        and reader.judge.counts["retry"] >= 1
        and "no byte came for 1 s" in caplog.text
    )


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
        assert ShardCatalog(
            expand_patterns([f"{server.url}/shard-001.tar"], remote), remote=remote
        ).counts == [2]
    assert server.requests == {f"/shard-001.tar{INDEX_SUFFIX}": 1, "/shard-001.tar": 1}


def test_copies_keep_to_their_limit_and_indexes_stay(tmp_path: Path, server: Server) -> None:
    sizes = [path.stat().st_size for path in sorted((tmp_path / "served").glob("*.tar"))]
    limit = 2 * max(sizes)
    remote = _remote(tmp_path, limit_bytes=limit)
    catalog = ShardCatalog(expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote), remote=remote)
    for shard in (0, 1, 2, 3, 0, 4, 5, 0):
        descriptor = catalog.open(shard)
        assert (
            sum(path.stat().st_size for path in _copies(tmp_path)) <= limit
            and os.fstat(descriptor).st_size == sizes[shard]
        )
        os.close(descriptor)
    # The one used last is among those kept.
    assert any(path.name == "shard-000.tar" for path in _copies(tmp_path))
    assert len(list(tmp_path.glob(f"cache/*/*{INDEX_SUFFIX}"))) == 6


def test_a_cache_smaller_than_what_is_read_together_is_an_error(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        ValueError, match=r"data\.cache_gib is 1e-05.*data\.shuffle_block \(2\).*raise data\.cache_gib"
    ):
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


def test_a_shard_that_changed_behind_its_index_is_a_read_failure_and_named(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"{server.url}/shard-{{000..001}}.tar"
    reader = _reader(tmp_path, pattern)
    for copy in _copies(tmp_path):
        copy.unlink()
    write_shards(tmp_path / "served", [5, 9])
    reader = _reader(tmp_path, pattern, fetch_attempts=2)
    assert set(_keys(reader, number=3)) == all_keys([5, 0])
    assert reader.judge.counts["read"] == 2 and "its index says" in caplog.text
    # Asked twice for the first sample, and no more for the others.
    assert server.requests["/shard-001.tar"] == 3


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS)
    reader = _reader(tmp_path, f"pipe:cat {tmp_path}/shard-{{000..005}}.tar | cat")
    assert set(_keys(reader)) == all_keys(COUNTS)


def test_a_pipe_whose_first_command_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    remote = _remote(tmp_path, attempts=2)
    with pytest.raises(OSError, match=r"pipe:\(echo -n abc.* broke off after 3 bytes \(exit code 7\)"):
        ShardCatalog(expand_patterns(["pipe:(echo -n abc; exit 7) | cat"], remote), remote=remote)
    assert len(remote.retried) == 1 and list(tmp_path.rglob("unfinished")) == []


def test_a_stalled_pipe_is_killed_with_its_children(tmp_path: Path) -> None:
    remote = _remote(tmp_path, attempts=1, stall_timeout_s=0.5)
    with pytest.raises(TimeoutError, match=r"no byte came for 0\.5 s"):
        ShardCatalog(
            expand_patterns([f"pipe:(echo $BASHPID > {tmp_path}/pid; exec sleep 60) | cat"], remote),
            remote=remote,
        )
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(int((tmp_path / "pid").read_text()))


def _wait_until_gone(process: int) -> None:
    """Raises: ProcessLookupError as soon as the process is gone."""
    for _ in range(100):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if state == "Z":
            raise ProcessLookupError(process)
        threading.Event().wait(0.1)


def test_s3_goes_through_the_command_of_its_vendor() -> None:
    assert remote_module._handled("s3://bucket/a b.tar") == (
        "pipe:exec setsid bash -o pipefail -c 'aws s3 cp --only-show-errors "
        """'"'"'s3://bucket/a b.tar'"'"' -'"""
    )


def test_a_copy_in_another_process_finds_what_was_fetched(tmp_path: Path, server: Server) -> None:
    reader = _reader(tmp_path, f"{server.url}/shard-000.tar")
    source = pickle.loads(pickle.dumps(reader.source))
    assert source.load(0).failure is None and server.requests["/shard-000.tar"] == 1


def test_the_log_says_that_no_index_was_found(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _reader(tmp_path, f"{server.url}/shard-000.tar")
    assert f"the server has no {server.url}/shard-000.tar{INDEX_SUFFIX}" in caplog.text


BUCKETS = BucketConfig(enabled=True, aspects=(0.5, 1.0, 2.0), step=2)


def _write_wide_ones(folder: Path) -> None:
    """Every third picture is twice as wide as high."""
    keys = [f"{number}_{row}" for number, count in enumerate(COUNTS) for row in range(0, count, 3)]
    write_shards(
        folder,
        COUNTS,
        replaced={key: {"png": encode(Image.new("RGB", (8, 4))), "txt": b"wide"} for key in keys},
    )


def _bucket_steps(reader: Reader, number: int = 12) -> list[tuple[list[str], tuple[int, ...]]]:
    plan = reader.plan(global_batch=4, micro_batch=2)
    batches = reader.batches(plan, plan.position(step=0, samples=0, by_bucket={}), dp_rank=0, dp_size=1)
    return [(batch.keys, tuple(pixels_of(batch).shape)) for batch in islice(batches, 2 * number)]


def _requests(server: Server, suffix: str) -> list[int]:
    """How often each file that ends so was asked for."""
    return sorted(count for path, count in server.requests.items() if path.endswith(suffix))


@pytest.mark.parametrize(
    "beside", [(), (INDEX_SUFFIX,), (SIDECAR + INDEX_SUFFIX,), (INDEX_SUFFIX, SIDECAR + INDEX_SUFFIX)]
)
def test_buckets_of_remote_shards_are_those_of_local_ones_whatever_lies_beside(
    tmp_path: Path, server: Server, beside: tuple[str, ...]
) -> None:
    _write_wide_ones(tmp_path / "served")
    local = _bucket_steps(_reader(tmp_path, f"{tmp_path}/served/shard-{{000..005}}.tar", buckets=BUCKETS))
    for place in (tmp_path / "served").glob("*.npz"):
        if place.name[len("shard-000.tar") :] not in beside:
            place.unlink()
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    reader = _reader(tmp_path, pattern, buckets=BUCKETS)
    # One fetch serves the index and the sizes; with both beside the shards one is looked at.
    assert _requests(server, ".tar") == [1] * (1 if len(beside) == 2 else 6)
    assert _requests(server, INDEX_SUFFIX) == [1] * 12 and _requests(server, SET_FILE) == [1]
    assert _bucket_steps(reader) == local and len({shape for _, shape in local}) == 2
    requests = server.requests.copy()
    assert _bucket_steps(_reader(tmp_path, pattern, buckets=BUCKETS)) == local
    # Whether the shards are features is asked anew.
    assert server.requests - requests == {f"/{SET_FILE}": 1}


def test_a_shard_is_fetched_once_for_index_and_sizes_where_the_cache_holds_one(
    tmp_path: Path, server: Server
) -> None:
    remote = _remote(tmp_path, limit_bytes=1)
    paths = expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote)
    catalog = ShardCatalog(paths, remote=remote, on_fetch=partial(find_sizes, has_features=False))
    assert ImageBuckets(catalog, (0.5, 1.0), ratios=(0.5, 1.0)).counts == [[0] * 6, COUNTS]
    assert _requests(server, ".tar") == [1] * 6 and len(_copies(tmp_path)) == 1


def test_a_shard_that_cannot_be_had_for_its_sizes_is_an_error_and_no_sizes_are_kept(
    tmp_path: Path, server: Server
) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    (tmp_path / "served" / "shard-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"the server has no http.*shard-001\.tar"):
        _reader(tmp_path, f"{server.url}/shard-001.tar", buckets=BUCKETS)
    assert not list(tmp_path.glob(f"cache/*/*{SIDECAR}{INDEX_SUFFIX}"))


def test_sizes_that_are_gone_with_the_server_are_read_failures(tmp_path: Path, server: Server) -> None:
    reader = _reader(tmp_path, f"{server.url}/shard-001.tar", buckets=BUCKETS)
    rmtree(tmp_path / "cache")
    (tmp_path / "served" / "shard-001.tar").unlink()
    source = pickle.loads(pickle.dumps(reader.source))
    failure = source.load(1).failure
    assert failure is not None and failure.kind == "read" and "shard-001.tar" in failure.reason


SOURCE = FeatureSource(
    "a", "", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
)


def _write_features(folder: Path, source: FeatureSource = SOURCE) -> None:
    """Latents that all differ."""
    folder.mkdir(exist_ok=True)
    replaced = {}
    for number, count in enumerate(COUNTS):
        for row in range(count):
            latents_VCHW = torch.full((1, 1, 2, 2), 10.0 * number + row)
            replaced[f"{number}_{row}"] = {
                "safetensors": pack_sample(
                    latents_VCHW, [], [], original=Size(4, 4), crop=(0, 0), precision="bf16"
                ),
                "txt": b"c",
            }
    write_shards(folder, COUNTS, replaced=replaced)
    FeatureSet(source, None).save(folder)


def _latents(reader: Reader) -> list[float]:
    return [
        value
        for batch in islice(read_batches(reader, global_batch=3, micro_batch=3), 12)
        if batch.latents_BCHW is not None
        for value in batch.latents_BCHW[:, 0, 0, 0].tolist()
    ]


def test_features_behind_a_server_are_those_of_local_shards_told_by_one_file_a_folder(
    tmp_path: Path, server: Server
) -> None:
    for name in "ab":
        _write_features(tmp_path / "served" / name)
    local = _latents(_reader(tmp_path, f"{tmp_path}/served/{{a,b}}/shard-{{000..005}}.tar"))
    for _ in range(2):
        reader = _reader(tmp_path, f"{server.url}/{{a,b}}/shard-{{000..005}}.tar")
        assert reader.source.features is not None and reader.source.features.source == SOURCE
        assert _latents(reader) == local and reader.judge.bad_samples == 0
    assert {path: count for path, count in server.requests.items() if path.endswith(SET_FILE)} == {
        f"/a/{SET_FILE}": 1,
        f"/b/{SET_FILE}": 1,
    }


def test_features_of_other_sources_are_not_mixed_behind_urls(tmp_path: Path, server: Server) -> None:
    _write_features(tmp_path / "served" / "a")
    _write_features(tmp_path / "served" / "b", replace(SOURCE, autoencoder="b"))
    with pytest.raises(
        ValueError,
        match=(
            r"features of http.*/a/features\.safetensors and http.*/b/.*cannot be mixed: autoencoder "
            r"'a' instead of 'b'"
        ),
    ):
        _reader(tmp_path, f"{server.url}/{{a,b}}/shard-000.tar")
    (tmp_path / "served" / "c").mkdir()
    with pytest.raises(ValueError, match=r"http.*/c/features\.safetensors, kept as .* is missing"):
        _reader(tmp_path, f"{server.url}/{{a,c}}/shard-000.tar")


def test_features_whose_server_has_not_what_made_them_are_an_error_until_it_has(
    tmp_path: Path, server: Server
) -> None:
    _write_features(tmp_path / "served")
    (tmp_path / "served" / SET_FILE).rename(tmp_path / SET_FILE)
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    with pytest.raises(
        ValueError,
        match=(
            r"http://.*/features\.safetensors, kept as .* is missing or damaged .*belongs beside the "
            r"shards"
        ),
    ):
        _reader(tmp_path, pattern)
    (tmp_path / SET_FILE).rename(tmp_path / "served" / SET_FILE)
    assert _reader(tmp_path, pattern).source.features is not None


def test_features_out_of_a_command_are_refused(tmp_path: Path) -> None:
    _write_features(tmp_path / "served")
    with pytest.raises(
        ValueError,
        match=(
            r"pipe:cat .* gives features, but a command names no folder .*by URLs of http, s3 or gs, "
            r"or copy them"
        ),
    ):
        _reader(tmp_path, f"pipe:cat {tmp_path}/served/shard-000.tar")
