import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.data.order import size as sizes_module
from diffmoe_scale.data.order.size import SIDECAR
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.shards.index import ShardIndex
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from tests.data.order.ratios import ASPECTS, COUNTS, find_buckets, write_mixed_shards
from tests.data.samples import encode, write_shards


def test_headers_are_read_once_and_again_for_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_mixed_shards(tmp_path)
    first = find_buckets(tmp_path)
    scanned: list[int] = []

    def scan(index: ShardIndex, shard: int, files: ShardFiles, **options: bool) -> np.ndarray:
        scanned.append(shard)
        return np.ones((len(index), 2), np.uint32)

    monkeypatch.setattr(
        sizes_module,
        "scan_sizes",
        scan,
    )
    assert find_buckets(tmp_path).counts == first.counts and scanned == []
    write_shards(tmp_path, [1, *COUNTS[1:]])
    place = paths[2].with_name(f"{paths[2].name}{SIDECAR}{INDEX_SUFFIX}")
    place.write_bytes(place.read_bytes()[:100])
    assert len(find_buckets(tmp_path).catalog.paths) == 4, (
        "the file of sizes matches the glob and is no shard"
    )
    assert sorted(scanned) == [0, 1, 2, 3]


def test_an_image_without_a_readable_size_keeps_its_place_among_the_squares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, [4], replaced={"0_2": {"png": b"broken", "txt": b"caption"}})
    buckets = find_buckets(tmp_path)
    assert (
        buckets.rows(0)[ASPECTS.index(1.0)].tolist() == [0, 1, 2, 3]
        and buckets.num_unknown == 1
        and "no readable size: 1 image;" in caplog.text
    )
    assert pickle.loads(pickle.dumps(buckets)).rows(0)[6].tolist() == [0, 1, 2, 3]


def test_a_header_behind_a_long_thumbnail_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40_000
    turned = encode(Image.new("RGB", (32, 16)), "JPEG", exif=exif)
    write_shards(tmp_path, [1], replaced={"0_0": {"jpg": turned, "txt": b"caption"}})
    # Lying on its side: 16 wide and 32 high.
    assert find_buckets(tmp_path).rows(0)[0].tolist() == [0]
