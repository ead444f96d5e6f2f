import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # settings of any type

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.conditions import CHECKED_SAMPLES
from diffmoe_scale.data.reading.judge import JUDGED_SAMPLES, LOGGED_FAILURES
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from tests.data.samples import (
    Members,
    all_keys,
    header_offset,
    make_sample,
    overwrite,
    pixels_of,
    read_batches,
    write_shards,
)

COUNTS = [7, 1, 12, 4, 9]
GLOBAL_BATCH, MICRO_BATCH = 8, 2
BROKEN = {"png": b"broken", "txt": b"caption"}


def _reader(
    folder: Path,
    counts: list[int] | None = None,
    *,
    replaced: dict[str, Members] | None = None,
    num_classes: int = 0,
    **options: Any,
) -> Reader:
    if counts is not None:
        write_shards(folder, counts, replaced=replaced)
    model = ModelConfig(
        image_size=4, conditioning="class" if num_classes else "text", num_classes=num_classes
    )
    return build_reader(
        DataConfig(**({"shuffle_block": 2} | options)), [f"{folder}/*.tar"], model=model, seed=5
    )


def _batches(
    reader: Reader, number: int, *, start_sample: int = 0, dp_rank: int = 0, dp_size: int = 1
) -> list[Batch]:
    batches = read_batches(
        reader,
        start_sample=start_sample,
        dp_rank=dp_rank,
        dp_size=dp_size,
        global_batch=GLOBAL_BATCH,
        micro_batch=MICRO_BATCH,
    )
    return list(itertools.islice(batches, number))


def _samples(batches: list[Batch]) -> list[tuple[int, str, str, bytes]]:
    return [
        (int(index), key, caption, image_CHW.numpy().tobytes())
        for batch in batches
        for index, key, caption, image_CHW in zip(
            batch.indices_B, batch.keys, batch.captions, to_unit_range(pixels_of(batch)), strict=True
        )
    ]


def _windows(reader: Reader, dp_size: int, number: int) -> list[list[tuple[int, str, str, bytes]]]:
    """The first windows of a run as the sorted samples of all its ranks."""
    micro_batches = GLOBAL_BATCH // (MICRO_BATCH * dp_size)
    ranks = [
        _batches(reader, number * micro_batches, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)
    ]
    return [
        sorted(
            sample
            for batches in ranks
            for sample in _samples(batches[window * micro_batches : (window + 1) * micro_batches])
        )
        for window in range(number)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_a_window_is_the_same_set_of_samples_whoever_shares_it(
    tmp_path: Path, dp_size: int, workers: int
) -> None:
    expected = _windows(_reader(tmp_path, COUNTS, horizontal_flip=True), 1, 6)
    windows = _windows(_reader(tmp_path, horizontal_flip=True, workers=workers), dp_size, 6)
    # Bit for bit, with dropped captions and mirrored images.
    assert windows == expected
    assert [[index for index, *_ in window] for window in windows] == [
        list(range(8 * w, 8 * w + 8)) for w in range(6)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_order_of_an_unstopped_one(tmp_path: Path, workers: int) -> None:
    unstopped = _samples(_batches(_reader(tmp_path, COUNTS), 40))
    for stop in (8, 40):
        assert (
            _samples(_batches(_reader(tmp_path, workers=workers), 10, start_sample=stop))
            == unstopped[stop : stop + 20]
        )


def test_a_run_resumed_on_more_ranks_reads_each_key_once_an_epoch(tmp_path: Path) -> None:
    counts = [10, 3, 11]
    reader = _reader(tmp_path, counts)
    before = _samples(_batches(reader, 4))
    after = [_samples(_batches(reader, 4, start_sample=8, dp_rank=rank, dp_size=2)) for rank in range(2)]
    assert {key for _, key, *_ in [*before, *after[0], *after[1]]} == all_keys(counts)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    block=st.integers(1, 7),
    dp_size=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 3),
)
def test_each_key_is_read_once_an_epoch(
    tmp_path: Path, counts: list[int], block: int, dp_size: int, epoch: int
) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    reader, total = _reader(tmp_path, counts, shuffle_block=block), sum(counts)
    micro_batches = -(-total // (MICRO_BATCH * dp_size))
    ranks = [
        _batches(reader, micro_batches, start_sample=epoch * total, dp_rank=rank, dp_size=dp_size)
        for rank in range(dp_size)
    ]
    read = [key for batches in ranks for index, key, *_ in _samples(batches) if index < (epoch + 1) * total]
    assert Counter(read) == dict.fromkeys(all_keys(counts), 1)


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS)
    model, patterns = ModelConfig(image_size=4), [f"{tmp_path}/*.tar"]
    state = torch.random.get_rng_state()
    orders: list[object] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(orders))
        orders.append(
            [
                key
                for batch in _batches(build_reader(DataConfig(), patterns, model=model, seed=seed), 8)
                for key in batch.keys
            ]
        )
    assert orders[0] == orders[1] != orders[2]
    torch.random.set_rng_state(state)


def test_reading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    reader, state = _reader(tmp_path, [4]), torch.random.get_rng_state()
    _batches(reader, 3)
    assert (torch.random.get_rng_state() == state).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_skipped_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    reader = _reader(tmp_path, [20, 20], replaced={"1_3": BROKEN}, workers=workers, caption_dropout=0.0)
    batches = _batches(reader, 20)
    weights = {
        key: weight
        for batch in batches
        for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True)
    }
    assert weights == {key: float(key != "shard-001.tar/1_3") for key in all_keys([20, 20])}
    assert (
        reader.judge.counts == {"no_picture": 1}
        and reader.judge.bad_samples == 1
        and reader.judge.read_samples == 40
    )
    assert caplog.text.count("shard-001.tar/1_3") == 1 and "its slot has weight 0" in caplog.text


def test_many_notes_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {f"0_{row}": make_sample(0, row) | {"txt": b"caf\xe9"} for row in range(40)}
    reader = _reader(tmp_path, [60], replaced=odd)
    _batches(reader, 30)
    assert reader.judge.counts["not_utf8"] == 40
    (line,) = [record.message for record in caplog.records if "no UTF-8" in record.message]
    assert "shard-000.tar/0_" in line and line.endswith("more of this kind are only counted")


def test_of_many_failures_the_first_are_logged_and_all_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = _reader(tmp_path, [60], replaced={f"0_{row}": BROKEN for row in range(40)}, max_bad_fraction=1.0)
    _batches(reader, 30)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert reader.judge.counts["no_picture"] == 40 and len(warnings) == LOGGED_FAILURES
    assert "more of this kind are only counted" in warnings[-1]


def test_a_broken_header_costs_one_sample_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path, [5, 5])
    overwrite(paths[1], header_offset(paths[1], "1_2.png") + 150, b"!" * 8)
    reader = _reader(tmp_path)
    keys = {key for batch in _batches(reader, 5) for key in batch.keys}
    assert reader.num_samples == 9 and keys == all_keys([5, 5]) - {"shard-001.tar/1_2"}
    assert (
        str(paths[1]) in caplog.text
        and "1_2" in caplog.text
        and reader.catalog.problems["broken header"] == 1
    )


def test_of_a_truncated_shard_the_whole_samples_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path, [5, 5])
    os.truncate(paths[0], header_offset(paths[0], "0_3.png") + 530)
    reader = _reader(tmp_path)
    keys = {key for batch in _batches(reader, 4) for key in batch.keys}
    assert keys == all_keys([3, 0]) | {f"shard-001.tar/1_{row}" for row in range(5)}
    assert f"{paths[0]}: truncated member: 0_3.png" in caplog.text


def test_a_shard_of_no_bytes_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty.tar").touch()
    reader = _reader(tmp_path, [4, 4])
    assert {key for batch in _batches(reader, 4) for key in batch.keys} == all_keys([4, 4])
    assert f"{tmp_path / 'empty.tar'} holds no sample" in caplog.text


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    with pytest.raises(ValueError, match=r"1 of 3 shards.*shard-002\.tar"):
        build_reader(
            DataConfig(), [f"{tmp_path}/shard-{{000..002}}.tar"], model=ModelConfig(image_size=4), seed=0
        )


def test_a_sample_without_a_caption_is_trained_on_the_empty_one_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = _reader(tmp_path, [4], replaced={"0_1": {"png": make_sample(0, 1)["png"]}}, caption_dropout=0.0)
    samples = {
        key: (batch.captions[row], float(batch.weight_B[row]))
        for batch in _batches(reader, 2)
        for row, key in enumerate(batch.keys)
    }
    assert samples["shard-000.tar/0_1"] == ("", 1.0) and samples["shard-000.tar/0_2"] == (
        "caption 0 2",
        1.0,
    )
    assert (
        reader.judge.counts == {"caption": 1}
        and reader.judge.bad_samples == 0
        and "shard-000.tar/0_1: no caption" in caplog.text
    )


def test_shards_without_any_caption_are_an_error(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"], "cls": b"1"} for row in range(5)}
    with pytest.raises(
        ValueError, match=r"none of 5 samples.*its \.txt or the field 'caption' of its \.json.*'cls': 5"
    ):
        _reader(tmp_path, [5], replaced=replaced)


def test_shards_without_any_label_are_an_error_for_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 5 samples.*\.cls.*'txt': 5"):
        _reader(tmp_path, [5], num_classes=10)


def test_one_caption_in_the_last_shard_is_found(tmp_path: Path) -> None:
    counts = [CHECKED_SAMPLES // 8] * 8
    replaced = {
        f"{shard}_{row}": {"png": make_sample(shard, row)["png"]}
        for shard in range(8)
        for row in range(counts[shard])
        if (shard, row) != (7, counts[7] - 1)
    }
    assert _reader(tmp_path, counts, replaced=replaced).num_samples == CHECKED_SAMPLES


def test_labels_reach_the_batch(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"], "cls": str(row).encode()} for row in range(4)}
    (batch,) = _batches(_reader(tmp_path, [4], replaced=replaced, num_classes=4, caption_dropout=0.0), 1)
    assert [
        f"shard-000.tar/0_{label}" for label in batch.labels_B.tolist()
    ] == batch.keys and batch.captions == ["", ""]


def _read_to_the_end(batches: Iterator[Batch], number: int) -> int:
    return sum(len(batch.keys) for batch in itertools.islice(batches, number))


def test_more_bad_samples_than_allowed_stop_the_run(tmp_path: Path) -> None:
    reader = _reader(
        tmp_path, [100], replaced={f"0_{row}": BROKEN for row in range(7)}, max_bad_fraction=0.06
    )
    batches = read_batches(reader, global_batch=10, micro_batch=10)
    # Judged from the first JUDGED_SAMPLES on: two epochs with 7 % each.
    assert _read_to_the_end(batches, JUDGED_SAMPLES // 10 - 1) == JUDGED_SAMPLES - 10
    with pytest.raises(
        RuntimeError, match=r"14 of 200 samples cannot be used.*data\.max_bad_fraction \(0\.06\)"
    ):
        next(batches)


def test_as_many_bad_samples_as_allowed_do_not_stop_the_run(tmp_path: Path) -> None:
    reader = _reader(
        tmp_path, [100], replaced={f"0_{row}": BROKEN for row in range(7)}, max_bad_fraction=0.07
    )
    batches = read_batches(reader, global_batch=100, micro_batch=100)
    assert _read_to_the_end(batches, 4) == 400 and reader.judge.bad_samples == 28


def test_samples_without_captions_are_not_bad(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"]} for row in range(1, 100)}
    reader = _reader(tmp_path, [100], replaced=replaced, max_bad_fraction=0.0)
    assert _read_to_the_end(read_batches(reader, global_batch=100, micro_batch=100), 3) == 300


def test_a_window_that_cannot_be_shared_evenly_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"run\.global_batch is 4 times run\.micro_batch; expected a multiple of 3, the "
            r"data-parallel ranks"
        ),
    ):
        _batches(_reader(tmp_path, [4]), 1, dp_size=3)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
@pytest.mark.parametrize("limit", [1, 10, 100])
def test_validation_weighs_each_of_the_first_samples_once(tmp_path: Path, dp_size: int, limit: int) -> None:
    reader = _reader(tmp_path, [6, 7], horizontal_flip=True, caption_dropout=0.9)
    ranks = [
        list(reader.validation_batches(limit=limit, dp_rank=rank, dp_size=dp_size, micro_batch=3))
        for rank in range(dp_size)
    ]
    weighed = Counter(
        (key, caption)
        for batches in ranks
        for batch in batches
        for key, caption, weight in zip(batch.keys, batch.captions, batch.weight_B, strict=True)
        if weight == 1
    )
    places = [(0, row) for row in range(6)] + [(1, row) for row in range(7)]
    assert weighed == {
        (f"shard-{shard:03d}.tar/{shard}_{row}", f"caption {shard} {row}"): 1 for shard, row in places[:limit]
    }
    # A rank with fewer batches would leave the others waiting in a collective.
    assert len({len(batches) for batches in ranks}) == 1 and all(
        len(batch.keys) == 3 for batches in ranks for batch in batches
    )


def test_captions_for_a_vocabulary_are_spread_over_the_shards(tmp_path: Path) -> None:
    reader = _reader(tmp_path, [4, 4, 4, 4])
    assert list(iterate_captions(reader, 4)) == [f"caption {shard} 0" for shard in range(4)]
    assert len(set(iterate_captions(reader, 100))) == 16


def test_the_start_says_how_much_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _reader(tmp_path, [3, 2])
    assert "5 samples in 2 shards" in caplog.text


def test_shards_that_lost_more_members_than_allowed_are_refused_before_training(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [250])
    for row in range(0, 250, 10):
        overwrite(path, header_offset_of_broken(path, row), b"!" * 8)
    with pytest.raises(
        ValueError,
        match=r"found 50 problems .* beside 225 good samples, more than data.max_bad_fraction \(0.05\)",
    ):
        _reader(tmp_path)


def header_offset_of_broken(path: Path, row: int) -> int:
    """Where the check sum of a row's picture header lies; by the raw bytes, since tarfile stops at the first
    broken one."""
    return path.read_bytes().index(f"0_{row}.png".encode()) + 150
