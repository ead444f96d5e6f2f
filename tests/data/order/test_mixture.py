import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.config.data import BucketConfig, DataConfig, DatasetConfig
from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.order.mixture import CYCLE, MixedOrder, apportion, mix, shares
from diffmoe_scale.data.order.plan import Position, build_plan
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import read_batches, write_shards

COUNTS = [[3, 0, 5], [40, 7], [2]]
TOTALS = [8, 47, 2]
WEIGHTS = [1.0, 2.5, 0.5]


def _order(seed: int = 4) -> MixedOrder:
    return MixedOrder(COUNTS, shares(WEIGHTS), seed=seed, block=2)


def _dataset(shard: int) -> int:
    return [0, 0, 0, 1, 1, 2][shard]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_turns_are_the_shares_of_the_weights(weights: list[float]) -> None:
    turns = shares(weights)
    assert sum(turns) == CYCLE
    assert all(
        abs(turn - weight / sum(weights) * CYCLE) < 1 for turn, weight in zip(turns, weights, strict=True)
    )


def test_a_weight_too_small_for_a_turn_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"data\.train\.1\.weight is 1e-06; expected at least 1/65536"):
        shares([1.0, 1e-6])


@pytest.mark.parametrize("first", [0, CYCLE - 700, 10**9])
def test_each_data_set_is_read_in_epochs_of_its_own(first: int) -> None:
    order = _order()
    started, read = order.consumed(first), Counter[tuple[int, int, int]]()
    local = list(started)
    for number in range(first, first + 1500):
        shard, row = order.locate(number)
        dataset = _dataset(shard)
        read[dataset, shard, row] += 1
        local[dataset] += 1
    assert local == order.consumed(first + 1500)
    # Whole epochs of a data set are in there, and parts of two more.
    for dataset, counts in enumerate(COUNTS):
        epochs = (local[dataset] // TOTALS[dataset]) - -(-started[dataset] // TOTALS[dataset])
        offset = sum(map(len, COUNTS[:dataset]))
        places = [
            (dataset, offset + shard, row) for shard, count in enumerate(counts) for row in range(count)
        ]
        assert epochs >= 2 and all(epochs <= read[place] <= epochs + 2 for place in places)
    assert len(read) == sum(TOTALS)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 5 * CYCLE), max_size=6))
def test_a_place_does_not_depend_on_what_was_asked_before(numbers: list[int]) -> None:
    asked = _order()
    assert [asked.locate(number) for number in numbers] == [_order().locate(number) for number in numbers]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 300))
def test_turns_are_given_one_by_one_to_whom_most_are_due(weights: list[int], number: int) -> None:
    turns = [0] * len(weights)
    for given_so_far in range(number):
        assert apportion(given_so_far, weights) == turns
        turns[
            min(
                (place for place, weight in enumerate(weights) if weight),
                key=lambda place: Fraction(turns[place] + 1, weights[place]),
            )
        ] += 1


IMAGES = st.lists(
    st.lists(st.sampled_from([0, 1, 17, 4096, 10**6]), min_size=3, max_size=3).filter(any),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=10)
@given(images=IMAGES, weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_data_sets_in_buckets_get_their_weights_and_each_bucket_what_they_bring(
    images: list[list[int]], weights: list[float]
) -> None:
    # Data set d has images[d][b] in bucket b, all in one shard.
    aspects = (0.5, 1.0, 2.0)
    counts = [[[by_bucket[bucket]] for by_bucket in images] for bucket in range(3)]
    orders, totals = mix(counts, weights[: len(images)], seed=1, block=1)
    plan = build_plan(
        BucketConfig(enabled=True, aspects=aspects, step=8),
        totals,
        image_size=64,
        global_batch=1024,
        micro_batch=1024,
    )
    position = plan.position(step=0, samples=0, by_bucket={})
    while position.samples < 10 * CYCLE:
        position = plan.advance(position)
    taken = [order.consumed(samples) for order, samples in zip(orders, position.consumed, strict=True)]
    for dataset, (by_bucket, weight) in enumerate(zip(images, weights, strict=False)):
        for bucket, count in enumerate(by_bucket):
            expected = position.samples * weight / sum(weights[: len(images)]) * count / sum(by_bucket)
            # A batch that is due, the weights in whole turns, and the share of a cycle that has begun: five
            # standard deviations at most.
            assert abs(taken[bucket][dataset] - expected) < 1024 + 10 + 5 * (CYCLE / 16) ** 0.5 and (
                count > 0 or taken[bucket][dataset] == 0
            )


def test_an_own_order_of_each_seed_and_data_set() -> None:
    places = [[order.locate(number) for number in range(200)] for order in map(_order, (4, 4, 5))]
    assert places[0] == places[1] != places[2]
    twins = MixedOrder([[50], [50]], [1, 1], seed=0, block=1)
    rows: list[list[int]] = [[], []]
    for number in range(60):
        shard, row = twins.locate(number)
        rows[shard].append(row)
    assert rows[0][:20] != rows[1][:20]


def _reader(folder: Path, workers: int = 0) -> Reader:
    entries = [
        DatasetConfig(shards=(f"{folder}/a/*.tar",), weight=3),
        DatasetConfig(shards=(f"{folder}/b/*.tar",), weight=1),
    ]
    config = DataConfig(train=tuple(entries), workers=workers, shuffle_block=2)
    return build_reader(config, config.train, model=ModelConfig(image_size=4), seed=1)


def test_a_mixture_is_the_same_for_all_ranks_and_after_a_stop(tmp_path: Path) -> None:
    for name, counts in (("a", [9, 4]), ("b", [5])):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, counts)
    reader = _reader(tmp_path)

    def read(start: int, dp_rank: int, dp_size: int, number: int) -> list[tuple[int, str, str]]:
        batches = read_batches(
            reader, start_sample=start, dp_rank=dp_rank, dp_size=dp_size, global_batch=8, micro_batch=2
        )
        taken = itertools.islice(batches, number)
        return [
            (int(n), key, text)
            for batch in taken
            for n, key, text in zip(batch.indices_B, batch.keys, batch.captions, strict=True)
        ]

    unstopped = read(0, 0, 1, 40)
    assert sorted(read(24, 0, 2, 8) + read(24, 1, 2, 8)) == unstopped[24:56]
    drawn = reader.dataset_counts(Position(20, (80,)))
    assert drawn.keys() == {"data/samples/0", "data/samples/1"} and sum(drawn.values()) == 80
    # Hypergeometric, nearly binomial: 60 +- 3.9; five standard deviations.
    assert abs(drawn["data/samples/0"] - 60) < 20


def test_one_data_set_reports_no_shares(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    reader = build_reader(DataConfig(), [f"{tmp_path}/*.tar"], model=ModelConfig(image_size=4), seed=1)
    assert reader.dataset_counts(Position(20, (100,))) == {}


def test_data_sets_are_written_in_the_config_and_back(tmp_path: Path) -> None:
    config = load_config(
        None, ["data.train=[{shards: [a.tar], weight: 2}, {shards: ['b-{0..3}.tar'], weight: 0.5}]"]
    )
    assert config.data.train[1] == DatasetConfig(shards=("b-{0..3}.tar",), weight=0.5)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{shards: [a.tar], weight: 0}]", "weight is 0.0; expected above 0"),
        ("[a.tar, {shards: [b.tar], weight: 1}]", r"data\.train is .*; expected patterns alone, or"),
        ("[{shards: [a.tar]}]", r"data\.train\.0.*weight"),
        ("[{shards: [a.tar], weigth: 1}]", r"data\.train\.0.*weigth"),
        ("[3]", r"data\.train\.0 is 3; .*string"),
    ],
)
def test_wrong_data_sets_are_named(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [f"data.train={value}"])
