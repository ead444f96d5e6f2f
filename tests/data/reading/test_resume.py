"""Exact and elastic resume: what is read after a stop, by any number of ranks and reading processes, is what
would have been read."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import all_keys, pixels_of, read_batches, write_shards

# 56 shards of 0 to 12 samples.
COUNTS = [(7 * number + number * number) % 13 for number in range(56)]
EPOCH = sum(COUNTS)
GLOBAL_BATCH = 8
STEPS = 2 * EPOCH // GLOBAL_BATCH
Read = tuple[int, str, str, bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, COUNTS)
    return folder


def _reader(folder: Path, workers: int = 0) -> Reader:
    config = DataConfig(workers=workers, shuffle_block=5, horizontal_flip=True, caption_dropout=0.2)
    return build_reader(config, [f"{folder}/*.tar"], model=ModelConfig(image_size=4), seed=11)


def _samples(batch: Batch) -> list[Read]:
    columns = zip(batch.indices_B, batch.keys, batch.captions, to_unit_range(pixels_of(batch)), strict=True)
    return [
        (int(index), key, caption, image_CHW.numpy().tobytes()) for index, key, caption, image_CHW in columns
    ]


def _steps(reader: Reader, *, first: int, number: int, dp_size: int, micro_batch: int) -> list[list[Read]]:
    """Global batches from step `first` on: its micro-batches in the order of the window, over all ranks."""
    accumulation = GLOBAL_BATCH // (dp_size * micro_batch)
    ranks = [
        read_batches(
            reader,
            start_sample=first * GLOBAL_BATCH,
            dp_rank=rank,
            dp_size=dp_size,
            global_batch=GLOBAL_BATCH,
            micro_batch=micro_batch,
        )
        for rank in range(dp_size)
    ]
    return [
        [sample for _ in range(accumulation) for batches in ranks for sample in _samples(next(batches))]
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def unstopped(folder: Path) -> list[list[Read]]:
    return _steps(_reader(folder), first=0, number=STEPS, dp_size=1, micro_batch=8)


def test_the_unstopped_run_reads_each_key_once_an_epoch(unstopped: list[list[Read]]) -> None:
    keys = [key for step in unstopped for _, key, *_ in step]
    for epoch in (keys[:EPOCH], keys[EPOCH : 2 * EPOCH - GLOBAL_BATCH]):
        assert max(Counter(epoch).values()) == 1
    assert set(keys[:EPOCH]) == all_keys(COUNTS)


def test_a_run_stopped_at_twenty_steps_and_continued_by_others_reads_as_the_unstopped(
    folder: Path, unstopped: list[list[Read]]
) -> None:
    stops = sorted(random.Random(7).sample(range(1, STEPS), 20))
    layouts = itertools.cycle(itertools.product([1, 2, 4], [1, 2]))
    read: list[list[Read]] = []
    for first, last, (dp_size, micro_batch) in zip([0, *stops], [*stops, STEPS], layouts, strict=False):
        read += _steps(
            _reader(folder), first=first, number=last - first, dp_size=dp_size, micro_batch=micro_batch
        )
    assert read == unstopped


@pytest.mark.parametrize(("dp_size", "workers"), [(1, 2), (2, 3), (4, 2)])
def test_reading_processes_change_nothing(
    folder: Path, unstopped: list[list[Read]], dp_size: int, workers: int
) -> None:
    first = 17
    assert (
        _steps(_reader(folder, workers), first=first, number=6, dp_size=dp_size, micro_batch=2)
        == unstopped[first : first + 6]
    )


# The folder is shared by the examples, which only read it.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_of_stops_reads_on_exactly(
    folder: Path, unstopped: list[list[Read]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, STEPS - 6), label="first step")
    for _ in range(data.draw(st.integers(1, 3), label="stops")):
        number = data.draw(st.integers(1, 2), label="steps")
        dp_size = data.draw(st.sampled_from([1, 2, 4]), label="ranks")
        micro_batch = data.draw(st.sampled_from([1, 2]), label="micro-batch")
        assert (
            _steps(_reader(folder), first=first, number=number, dp_size=dp_size, micro_batch=micro_batch)
            == unstopped[first : first + number]
        )
        first += number
