from collections import Counter
from pathlib import Path

import pytest

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import BucketConfig, DataConfig, DatasetConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.order.ratios import (
    ASPECTS,
    COUNTS,
    GLOBAL_BATCH,
    MICRO_BATCH,
    bucket_reader,
    content_of,
    read_steps,
    write_mixed_shards,
)
from tests.data.samples import all_keys, pixels_of, write_shards


def test_an_epoch_of_twelve_ratios_has_batches_of_one_shape_and_each_key_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mixed_shards(tmp_path)
    caplog.set_level("INFO")
    reader = bucket_reader(tmp_path)
    assert (
        reader.images is not None
        and sum(map(sum, reader.images.counts)) == 60
        and min(map(sum, reader.images.counts)) >= 4
    )
    steps = read_steps(reader, 24)
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
    write_mixed_shards(tmp_path)
    reader = bucket_reader(tmp_path, horizontal_flip=True)
    unstopped = content_of(read_steps(reader, 20))
    assert (
        content_of(
            read_steps(bucket_reader(tmp_path, horizontal_flip=True, workers=workers), 8, dp_size=dp_size)
        )
        == unstopped[:8]
    )
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    position = plan.position(step=0, samples=0, by_bucket={})
    for _ in range(13):
        position = plan.advance(position)
    assert (
        content_of(
            read_steps(bucket_reader(tmp_path, horizontal_flip=True), 7, start=position, dp_size=dp_size)
        )
        == unstopped[13:]
    )


def test_validation_weighs_each_sample_once_in_batches_of_one_shape(tmp_path: Path) -> None:
    write_mixed_shards(tmp_path)
    reader = bucket_reader(tmp_path)
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


def weighted_reader(folder: Path, weights: tuple[float, ...] = (3.0, 1.0)) -> Reader:
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
    write_mixed_shards(tmp_path / "a")
    write_shards(tmp_path / "b", [9, 40])
    reader = weighted_reader(tmp_path)
    unstopped = read_steps(reader, 60)
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
        assert content_of(
            read_steps(weighted_reader(tmp_path), 20, start=position, dp_size=dp_size)
        ) == content_of(unstopped[13:33])


def test_one_data_set_with_a_weight_is_read_as_without(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_mixed_shards(tmp_path / "a")
    assert content_of(read_steps(weighted_reader(tmp_path, weights=(0.3,)), 30)) == content_of(
        read_steps(bucket_reader(tmp_path / "a", caption_dropout=0.0), 30)
    )


def test_a_data_set_without_samples_is_an_error(tmp_path: Path) -> None:
    for name, counts in (("a", [3]), ("b", [0])):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, counts)
    with pytest.raises(
        ValueError, match=r"data\.train\.1\.shards is .*/b/\*\.tar.*; expected shards with samples"
    ):
        weighted_reader(tmp_path)
