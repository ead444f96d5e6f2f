import itertools
import pickle
from collections import Counter
from pathlib import Path
from typing import Any  # settings of any type

import numpy as np
import pytest
import torch
from PIL import Image

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import BucketConfig, DataConfig, DatasetConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import SET_FILE, FeatureSet, FeatureSource
from diffmoe_scale.data.order import size as sizes_module
from diffmoe_scale.data.order.plan import Position
from diffmoe_scale.data.order.size import SIDECAR, ImageBuckets
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import Size, decode_image, stored_size
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import ShardIndex
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX, expand_patterns
from tests.data.samples import Members, all_keys, encode, pixels_of, write_shards

ASPECTS = (0.5, 0.5625, 0.6667, 0.75, 0.8, 0.9, 1.0, 1.25, 1.3333, 1.5, 1.7778, 2.0)
COUNTS = [11, 3, 17, 29]
GLOBAL_BATCH, MICRO_BATCH = 8, 2
SOURCE = FeatureSource(
    "a", "", channels=1, factor=2, image_size=16, aspects=ASPECTS, step=2, num_views=1, precision="bf16"
)


def _members(number: int, row: int) -> Members:
    """An image of one of the twelve ratios, all of about 1024 pixels."""
    aspect = ASPECTS[(5 * number + row) % 12]
    size = (round(32 * aspect**0.5), round(32 / aspect**0.5))
    return {"png": encode(Image.new("RGB", size, (number, row, 0))), "txt": b"caption"}


def _mixed_shards(folder: Path) -> list[Path]:
    return write_shards(
        folder,
        COUNTS,
        replaced={f"{n}_{row}": _members(n, row) for n, count in enumerate(COUNTS) for row in range(count)},
    )


def _feature_shards(folder: Path, *, wrong: str = "") -> list[Path]:
    """The same samples as features; those of the key `wrong` lie on their side."""
    replaced = {}
    for key in (f"{n}_{row}" for n, count in enumerate(COUNTS) for row in range(count)):
        data = _members(*map(int, key.split("_")))["png"]
        picture = decode_image(data, size=SOURCE.image_size_of(stored_size(data)), background=(0, 0, 0))
        height, width, _ = picture.pixels_HWC.shape
        latents_VCHW = torch.zeros(
            1, *SOURCE.latent_shape(Size(width, height) if key == wrong else Size(height, width))
        )
        member = pack_sample(
            latents_VCHW, [], [], original=picture.original, crop=picture.crop, precision="bf16"
        )
        replaced[key] = {"safetensors": member, "txt": b"caption"}
    FeatureSet(SOURCE, None).save(folder)
    return write_shards(folder, COUNTS, replaced=replaced)


def _reader(folder: Path, **data: Any) -> Reader:
    buckets = BucketConfig(enabled=True, aspects=ASPECTS, step=2)
    return build_reader(
        DataConfig(**({"shuffle_block": 2} | data)),
        [f"{folder}/*.tar"],
        model=ModelConfig(image_size=16),
        seed=5,
        buckets=buckets,
    )


def _steps(
    reader: Reader, number: int, *, start: Position | None = None, dp_size: int = 1
) -> list[list[Batch]]:
    """The batches of all ranks, step by step, in the order of their places."""
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    start = start or plan.position(step=0, samples=0, by_bucket={})
    each = plan.micro_batches // dp_size
    ranks = [
        list(itertools.islice(reader.batches(plan, start, dp_rank=rank, dp_size=dp_size), number * each))
        for rank in range(dp_size)
    ]
    return [
        [batches[step * each + turn] for turn in range(each) for batches in ranks] for step in range(number)
    ]


def _content(steps: list[list[Batch]]) -> list[list[tuple[int, str, str, bytes]]]:
    return [
        [
            (index, key, caption, image.numpy().tobytes())
            for batch in step
            for index, key, caption, image in zip(
                batch.indices_B.tolist(),
                batch.keys,
                batch.captions,
                to_unit_range(pixels_of(batch)),
                strict=True,
            )
        ]
        for step in steps
    ]


def test_an_epoch_of_twelve_ratios_has_batches_of_one_shape_and_each_key_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _mixed_shards(tmp_path)
    caplog.set_level("INFO")
    reader = _reader(tmp_path)
    assert (
        reader.images is not None
        and sum(map(sum, reader.images.counts)) == 60
        and min(map(sum, reader.images.counts)) >= 4
    )
    steps = _steps(reader, 24)
    assert all(len({pixels_of(batch).shape for batch in step}) == 1 for step in steps)
    assert len({pixels_of(step[0]).shape for step in steps}) > 6 and all(
        (batch.weight_B == 1).all() for step in steps for batch in step
    )
    # A bucket's epochs follow each other in its own stream.
    streams: dict[int, list[str]] = {}
    for step in steps:
        for batch in step:
            for index, key in zip(batch.indices_B.tolist(), batch.keys, strict=True):
                streams.setdefault(index % 12, []).append(key)
    totals = [sum(counts) for counts in reader.images.counts]
    assert all(len(keys) >= totals[bucket] for bucket, keys in streams.items())
    epoch = Counter(key for bucket, keys in streams.items() for key in keys[: totals[bucket]])
    assert epoch == dict.fromkeys(all_keys(COUNTS), 1)
    # Squares of these images would lose more than a quarter.
    assert (
        "no padding" in caplog.text
        and "of the tokens of 8 squares of 16" in caplog.text
        and "squares would 28.1 %" in caplog.text
    )
    assert "aspect 2 has 4 images, fewer than its batch of" in caplog.text


@pytest.mark.parametrize(("dp_size", "workers"), [(2, 0), (4, 0), (1, 2)])
def test_steps_are_the_same_for_any_ranks_and_workers_and_from_any_stop(
    tmp_path: Path, dp_size: int, workers: int
) -> None:
    _mixed_shards(tmp_path)
    reader = _reader(tmp_path, horizontal_flip=True)
    unstopped = _content(_steps(reader, 20))
    assert (
        _content(_steps(_reader(tmp_path, horizontal_flip=True, workers=workers), 8, dp_size=dp_size))
        == unstopped[:8]
    )
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    position = plan.position(step=0, samples=0, by_bucket={})
    for _ in range(13):
        position = plan.advance(position)
    assert (
        _content(_steps(_reader(tmp_path, horizontal_flip=True), 7, start=position, dp_size=dp_size))
        == unstopped[13:]
    )


def test_validation_weighs_each_sample_once_in_batches_of_one_shape(tmp_path: Path) -> None:
    _mixed_shards(tmp_path)
    reader = _reader(tmp_path)
    for dp_size in (1, 2):
        ranks = [
            list(reader.validation_batches(limit=40, dp_rank=rank, dp_size=dp_size, micro_batch=3))
            for rank in range(dp_size)
        ]
        weights: Counter[str] = Counter()
        for batches in ranks:
            for batch in batches:
                weights.update(
                    {
                        key: int(weight)
                        for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True)
                        if weight
                    }
                )
        assert weights.total() == 40 == len(weights)
        assert [[pixels_of(batch).shape for batch in batches] for batches in ranks] == [
            [pixels_of(batch).shape for batch in ranks[0]]
        ] * dp_size


def _mixed_reader(folder: Path, weights: tuple[float, ...] = (3.0, 1.0)) -> Reader:
    """Data sets a, of all ratios, and b, of squares."""
    entries = tuple(
        DatasetConfig(shards=(f"{folder}/{name}/*.tar",), weight=weight)
        for name, weight in zip("ab", weights, strict=False)
    )
    buckets = BucketConfig(enabled=True, aspects=ASPECTS, step=2)
    return build_reader(
        DataConfig(train=entries, shuffle_block=2, caption_dropout=0.0),
        entries,
        model=ModelConfig(image_size=16),
        seed=5,
        buckets=buckets,
    )


def test_data_sets_by_weight_in_buckets_are_the_same_for_any_ranks_and_from_any_stop(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    _mixed_shards(tmp_path / "a")
    write_shards(tmp_path / "b", [9, 40])
    reader = _mixed_reader(tmp_path)
    unstopped = _steps(reader, 60)
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    position = plan.position(step=0, samples=0, by_bucket={})
    # Captions tell the data sets apart.
    read = Counter({"data/samples/0": 0, "data/samples/1": 0})
    for step in unstopped:
        read.update(
            f"data/samples/{0 if text == 'caption' else 1}" for batch in step for text in batch.captions
        )
        position = plan.advance(position)
        assert reader.dataset_counts(position) == read
    assert (
        len({pixels_of(step[0]).shape for step in unstopped}) > 6
        and abs(read["data/samples/0"] / position.samples - 0.75) < 0.05
    )
    position = plan.position(step=0, samples=0, by_bucket={})
    for _ in range(13):
        position = plan.advance(position)
    for dp_size in (2, 4):
        assert _content(_steps(_mixed_reader(tmp_path), 20, start=position, dp_size=dp_size)) == _content(
            unstopped[13:33]
        )


def test_one_data_set_with_a_weight_is_read_as_without(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _mixed_shards(tmp_path / "a")
    assert _content(_steps(_mixed_reader(tmp_path, weights=(0.3,)), 30)) == _content(
        _steps(_reader(tmp_path / "a", caption_dropout=0.0), 30)
    )


def test_a_data_set_without_samples_is_an_error(tmp_path: Path) -> None:
    for name, counts in (("a", [3]), ("b", [0])):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, counts)
    with pytest.raises(
        ValueError, match=r"data\.train\.1\.shards is .*/b/\*\.tar.*; expected shards with samples"
    ):
        _mixed_reader(tmp_path)


def test_features_come_in_the_order_batches_and_shapes_of_their_pictures(tmp_path: Path) -> None:
    for name, write in (("pictures", _mixed_shards), ("features", _feature_shards)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    readers = [_reader(tmp_path / name) for name in ("pictures", "features")]
    read = [
        [
            *itertools.chain(*_steps(reader, 24)),
            *reader.validation_batches(limit=40, dp_rank=0, dp_size=1, micro_batch=3),
        ]
        for reader in readers
    ]
    for plain, ours in zip(*read, strict=True):
        assert ours.keys == plain.keys and ours.captions == plain.captions and ours.failures == []
        assert torch.equal(ours.indices_B, plain.indices_B) and torch.equal(ours.weight_B, plain.weight_B)
        assert torch.equal(ours.sizes_BZ, plain.sizes_BZ) and (ours.sizes_BZ[:, :2] > 0).all()
        count, height, width, _ = pixels_of(plain).shape
        assert ours.latents_BCHW.shape == (count, 1, height // 2, width // 2)


def test_features_of_another_shape_than_their_bucket_s_are_failures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _feature_shards(tmp_path, wrong="2_5")
    reader = _reader(tmp_path)
    batches = list(itertools.chain(*_steps(reader, 24)))
    failed = {
        key
        for batch in batches
        for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True)
        if weight == 0
    }
    assert failed == {"shard-002.tar/2_5"} and reader.judge.counts.keys() == {"features"}
    assert "shard-002.tar/2_5: ValueError: latents of shape (1, 1, " in caplog.text


def test_features_of_other_buckets_are_refused_before_their_sizes_are_read(tmp_path: Path) -> None:
    (path, *_) = _feature_shards(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"aspects \(0\.5, .* instead of \(1\.0,\); set model\.image_size and buckets as they were",
    ):
        build_reader(
            DataConfig(),
            [str(path)],
            model=ModelConfig(image_size=16),
            seed=0,
            buckets=BucketConfig(enabled=True, aspects=(1.0,), step=2),
        )
    assert not list(tmp_path.glob("*.npz"))


def test_a_sample_of_stray_features_has_no_size(tmp_path: Path) -> None:
    write_shards(tmp_path, [2], replaced={"0_1": {"safetensors": b"x", "txt": b"caption"}})
    assert _buckets(tmp_path).num_unknown == 1


def test_features_found_without_what_made_them_have_their_sizes_all_the_same(tmp_path: Path) -> None:
    _feature_shards(tmp_path)
    # Kept for the next start, when features.safetensors may be there.
    (tmp_path / SET_FILE).unlink()
    assert _buckets(tmp_path).num_unknown == 0


def _buckets(folder: Path) -> ImageBuckets:
    catalog = ShardCatalog(expand_patterns([f"{folder}/*.tar*"]))
    return ImageBuckets(catalog, ASPECTS, ratios=ASPECTS)


def test_headers_are_read_once_and_again_for_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = _mixed_shards(tmp_path)
    first = _buckets(tmp_path)
    scanned: list[int] = []

    def scan(index: ShardIndex, shard: int, files: ShardFiles, **options: bool) -> np.ndarray:
        scanned.append(shard)
        return np.ones((len(index), 2), np.uint32)

    monkeypatch.setattr(
        sizes_module,
        "scan_sizes",
        scan,
    )
    assert _buckets(tmp_path).counts == first.counts and scanned == []
    write_shards(tmp_path, [1, *COUNTS[1:]])
    place = paths[2].with_name(f"{paths[2].name}{SIDECAR}{INDEX_SUFFIX}")
    place.write_bytes(place.read_bytes()[:100])
    assert len(_buckets(tmp_path).catalog.paths) == 4, "the file of sizes matches the glob and is no shard"
    assert sorted(scanned) == [0, 1, 2, 3]


def test_an_image_without_a_readable_size_keeps_its_place_among_the_squares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, [4], replaced={"0_2": {"png": b"broken", "txt": b"caption"}})
    buckets = _buckets(tmp_path)
    assert (
        buckets.rows(0)[ASPECTS.index(1.0)].tolist() == [0, 1, 2, 3]
        and buckets.num_unknown == 1
        and "1 images have no readable size" in caplog.text
    )
    assert pickle.loads(pickle.dumps(buckets)).rows(0)[6].tolist() == [0, 1, 2, 3]


def test_a_header_behind_a_long_thumbnail_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40_000
    turned = encode(Image.new("RGB", (32, 16)), "JPEG", exif=exif)
    write_shards(tmp_path, [1], replaced={"0_0": {"jpg": turned, "txt": b"caption"}})
    # Lying on its side: 16 wide and 32 high.
    assert _buckets(tmp_path).rows(0)[0].tolist() == [0]
