import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from tests.data.reading.readers import GLOBAL_BATCH, MICRO_BATCH, first_batches, make_reader
from tests.data.samples import all_keys, make_sample, pixels_of, write_shards

COUNTS = [7, 1, 12, 4, 9]


def samples_of(batches: list[Batch]) -> list[tuple[int, str, str, bytes]]:
    return [
        (int(index), key, caption, image_CHW.numpy().tobytes())
        for batch in batches
        for index, key, caption, image_CHW in zip(
            batch.indices_B, batch.keys, batch.captions, to_unit_range(pixels_of(batch)), strict=True
        )
    ]


def windows_of(reader: Reader, dp_size: int, number: int) -> list[list[tuple[int, str, str, bytes]]]:
    """The first windows of a run as the sorted samples of all its ranks."""
    micro_batches = GLOBAL_BATCH // (MICRO_BATCH * dp_size)
    ranks = [
        first_batches(reader, number * micro_batches, dp_rank=rank, dp_size=dp_size)
        for rank in range(dp_size)
    ]
    return [
        sorted(
            sample
            for batches in ranks
            for sample in samples_of(batches[window * micro_batches : (window + 1) * micro_batches])
        )
        for window in range(number)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_a_window_is_the_same_set_of_samples_whoever_shares_it(
    tmp_path: Path, dp_size: int, workers: int
) -> None:
    expected = windows_of(make_reader(tmp_path, COUNTS, horizontal_flip=True), 1, 6)
    windows = windows_of(make_reader(tmp_path, horizontal_flip=True, workers=workers), dp_size, 6)
    # Bit for bit, with dropped captions and mirrored images.
    assert windows == expected
    assert [[index for index, *_ in window] for window in windows] == [
        list(range(8 * w, 8 * w + 8)) for w in range(6)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_order_of_an_unstopped_one(tmp_path: Path, workers: int) -> None:
    unstopped = samples_of(first_batches(make_reader(tmp_path, COUNTS), 40))
    for stop in (8, 40):
        assert (
            samples_of(first_batches(make_reader(tmp_path, workers=workers), 10, start_sample=stop))
            == unstopped[stop : stop + 20]
        )


def test_a_run_resumed_on_more_ranks_reads_each_key_once_an_epoch(tmp_path: Path) -> None:
    counts = [10, 3, 11]
    reader = make_reader(tmp_path, counts)
    before = samples_of(first_batches(reader, 4))
    after = [
        samples_of(first_batches(reader, 4, start_sample=8, dp_rank=rank, dp_size=2)) for rank in range(2)
    ]
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
    reader, total = make_reader(tmp_path, counts, shuffle_block=block), sum(counts)
    micro_batches = -(-total // (MICRO_BATCH * dp_size))
    ranks = [
        first_batches(reader, micro_batches, start_sample=epoch * total, dp_rank=rank, dp_size=dp_size)
        for rank in range(dp_size)
    ]
    read = [key for batches in ranks for index, key, *_ in samples_of(batches) if index < (epoch + 1) * total]
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
                for batch in first_batches(build_reader(DataConfig(), patterns, model=model, seed=seed), 8)
                for key in batch.keys
            ]
        )
    assert orders[0] == orders[1] != orders[2]
    torch.random.set_rng_state(state)


def test_reading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    reader, state = make_reader(tmp_path, [4]), torch.random.get_rng_state()
    first_batches(reader, 3)
    assert (torch.random.get_rng_state() == state).all()


def test_labels_reach_the_batch(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"], "cls": str(row).encode()} for row in range(4)}
    (batch,) = first_batches(
        make_reader(tmp_path, [4], replaced=replaced, num_classes=4, caption_dropout=0.0), 1
    )
    assert [
        f"shard-000.tar/0_{label}" for label in batch.labels_B.tolist()
    ] == batch.keys and batch.captions == ["", ""]


def test_a_window_that_cannot_be_shared_evenly_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"run\.global_batch is 4 times run\.micro_batch; expected a multiple of 3, the "
            r"data-parallel ranks"
        ),
    ):
        first_batches(make_reader(tmp_path, [4]), 1, dp_size=3)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
@pytest.mark.parametrize("limit", [1, 10, 100])
def test_validation_weighs_each_of_the_first_samples_once(tmp_path: Path, dp_size: int, limit: int) -> None:
    reader = make_reader(tmp_path, [6, 7], horizontal_flip=True, caption_dropout=0.9)
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
    reader = make_reader(tmp_path, [4, 4, 4, 4])
    assert list(iterate_captions(reader, 4)) == [f"caption {shard} 0" for shard in range(4)]
    assert len(set(iterate_captions(reader, 100))) == 16


def test_the_start_says_how_much_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_reader(tmp_path, [3, 2])
    assert "5 samples in 2 shards" in caplog.text
