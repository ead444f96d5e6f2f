import pickle
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import rmtree

import pytest
from PIL import Image

from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.features.source import SET_FILE
from diffmoe_scale.data.order.size import SIDECAR, ImageBuckets, find_sizes
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX, expand_patterns
from tests.data.samples import encode, pixels_of, write_shards
from tests.data.shards.servers import COUNTS, Server, cached_copies, make_reader, make_remote

BUCKETS = BucketConfig(enabled=True, aspects=(0.5, 1.0, 2.0), step=2)


def write_wide_ones(folder: Path) -> None:
    """Every third picture is twice as wide as high."""
    keys = [f"{number}_{row}" for number, count in enumerate(COUNTS) for row in range(0, count, 3)]
    write_shards(
        folder,
        COUNTS,
        replaced={key: {"png": encode(Image.new("RGB", (8, 4))), "txt": b"wide"} for key in keys},
    )


def read_bucket_steps(reader: Reader, number: int = 12) -> list[tuple[list[str], tuple[int, ...]]]:
    plan = reader.plan(global_batch=4, micro_batch=2)
    batches = reader.batches(plan, plan.position(step=0, samples=0, by_bucket={}), dp_rank=0, dp_size=1)
    return [(batch.keys, tuple(pixels_of(batch).shape)) for batch in islice(batches, 2 * number)]


def count_requests(server: Server, suffix: str) -> list[int]:
    """How often each file that ends so was asked for."""
    return sorted(count for path, count in server.requests.items() if path.endswith(suffix))


@pytest.mark.parametrize(
    "beside", [(), (INDEX_SUFFIX,), (SIDECAR + INDEX_SUFFIX,), (INDEX_SUFFIX, SIDECAR + INDEX_SUFFIX)]
)
def test_buckets_of_remote_shards_are_those_of_local_ones_whatever_lies_beside(
    tmp_path: Path, server: Server, beside: tuple[str, ...]
) -> None:
    write_wide_ones(tmp_path / "served")
    local = read_bucket_steps(
        make_reader(tmp_path, f"{tmp_path}/served/shard-{{000..005}}.tar", buckets=BUCKETS)
    )
    for place in (tmp_path / "served").glob("*.npz"):
        if place.name[len("shard-000.tar") :] not in beside:
            place.unlink()
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    reader = make_reader(tmp_path, pattern, buckets=BUCKETS)
    # One fetch serves the index and the sizes; with both beside the shards one is looked at.
    assert count_requests(server, ".tar") == [1] * (1 if len(beside) == 2 else 6)
    assert count_requests(server, INDEX_SUFFIX) == [1] * 12 and count_requests(server, SET_FILE) == [1]
    assert read_bucket_steps(reader) == local and len({shape for _, shape in local}) == 2
    requests = server.requests.copy()
    assert read_bucket_steps(make_reader(tmp_path, pattern, buckets=BUCKETS)) == local
    # Whether the shards are features is asked anew.
    assert server.requests - requests == {f"/{SET_FILE}": 1}


def test_a_shard_is_fetched_once_for_index_and_sizes_where_the_cache_holds_one(
    tmp_path: Path, server: Server
) -> None:
    remote = make_remote(tmp_path, limit_bytes=1)
    paths = expand_patterns([f"{server.url}/shard-{{000..005}}.tar"], remote)
    catalog = ShardCatalog(paths, remote=remote, on_fetch=partial(find_sizes, has_features=False))
    assert ImageBuckets(catalog, (0.5, 1.0), ratios=(0.5, 1.0)).counts == [[0] * 6, COUNTS]
    assert count_requests(server, ".tar") == [1] * 6 and len(cached_copies(tmp_path)) == 1


def test_a_shard_that_cannot_be_had_for_its_sizes_is_an_error_and_no_sizes_are_kept(
    tmp_path: Path, server: Server
) -> None:
    ShardCatalog(sorted((tmp_path / "served").glob("*.tar")))
    (tmp_path / "served" / "shard-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"the server has no http.*shard-001\.tar"):
        make_reader(tmp_path, f"{server.url}/shard-001.tar", buckets=BUCKETS)
    assert not list(tmp_path.glob(f"cache/*/*{SIDECAR}{INDEX_SUFFIX}"))


def test_sizes_that_are_gone_with_the_server_are_read_failures(tmp_path: Path, server: Server) -> None:
    reader = make_reader(tmp_path, f"{server.url}/shard-001.tar", buckets=BUCKETS)
    rmtree(tmp_path / "cache")
    (tmp_path / "served" / "shard-001.tar").unlink()
    source = pickle.loads(pickle.dumps(reader.source))
    failure = source.load(1).failure
    assert failure is not None and failure.kind == "read" and "shard-001.tar" in failure.reason
