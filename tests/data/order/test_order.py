import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.data.order.order import BucketOrder, FixedOrder, ShuffledOrder, sample_draws

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


def _places(counts: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@settings(deadline=None)
@given(counts=COUNTS)
def test_the_fixed_order_goes_shard_by_shard_and_begins_again(counts: list[int]) -> None:
    places = _places(counts)
    assert [FixedOrder(counts).locate(index) for index in range(2 * len(places))] == 2 * places


@settings(deadline=None)
@given(counts=COUNTS, block=st.integers(1, 13), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_an_epoch_holds_each_place_once(counts: list[int], block: int, seed: int, epoch: int) -> None:
    order, total = ShuffledOrder(counts, seed=seed, block=block), sum(counts)
    assert sorted(order.locate(epoch * total + position) for position in range(total)) == _places(counts)


@settings(deadline=None)
@given(counts=COUNTS, block=st.integers(1, 13), numbers=st.lists(st.integers(0, 500), max_size=20))
def test_a_place_does_not_depend_on_what_was_asked_before(
    counts: list[int], block: int, numbers: list[int]
) -> None:
    asked = ShuffledOrder(counts, seed=3, block=block)
    assert [asked.locate(number) for number in numbers] == [
        ShuffledOrder(counts, seed=3, block=block).locate(number) for number in numbers
    ]


@settings(deadline=None)
@given(counts=COUNTS, block=st.integers(1, 13))
def test_shards_of_a_block_are_finished_before_the_next_begins(counts: list[int], block: int) -> None:
    order = ShuffledOrder(counts, seed=0, block=block)
    left = Counter({shard: count for shard, count in enumerate(counts) if count})
    started: set[int] = set()
    for number in range(sum(counts)):
        shard, _ = order.locate(number)
        started.add(shard)
        left -= Counter([shard])
        # Shards begun and not yet read to the end are open together.
        assert len(started & left.keys()) <= block


def test_every_order_of_three_samples_is_as_frequent_as_any_other() -> None:
    order, epochs = ShuffledOrder([3], seed=1, block=4), 6000
    found = Counter(
        tuple(order.locate(3 * epoch + position)[1] for position in range(3)) for epoch in range(epochs)
    )
    # Binomial: 1000 +- 29; five standard deviations.
    assert set(found) == set(itertools.permutations(range(3))) and all(
        abs(count - epochs / 6) < 145 for count in found.values()
    )


def test_another_seed_or_epoch_gives_another_order() -> None:
    def epoch_of(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = ShuffledOrder([40, 60], seed=seed, block=2)
        return [order.locate(100 * epoch + position) for position in range(100)]

    orders = [epoch_of(0, 0), epoch_of(0, 1), epoch_of(1, 0), epoch_of(1, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_a_place_deep_in_a_run_of_a_thousand_shards_is_found_without_reading_on() -> None:
    counts = [10_000 + number for number in range(1000)]
    index = 57_000_000 * sum(counts) + 1_234_567
    shard, row = ShuffledOrder(counts, seed=0, block=8).locate(index)
    assert 0 <= row < counts[shard]


def test_draws_are_uniform_and_independent() -> None:
    draws = [sample_draws(seed, index) for seed in range(4) for index in range(5000)]
    values = np.array([(draw.dropout, draw.caption, draw.flip) for draw in draws])
    assert ((values >= 0) & (values < 1)).all()
    # Mean 1/2, variance 1/12, correlation 0; five standard deviations of 20,000 draws.
    assert abs(values.mean(0) - 0.5).max() < 5 * (1 / 12 / 20_000) ** 0.5
    assert abs(values.var(0) - 1 / 12).max() < 5 * (1 / 180 / 20_000) ** 0.5
    assert abs(np.corrcoef(values.T) - np.eye(3)).max() < 5 / 20_000**0.5


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (0, 1), (1, 0), (-1, 5), (2**63, 2**60)])
def test_draws_are_a_function_of_seed_and_number(seed: int, index: int) -> None:
    assert sample_draws(seed, index) == sample_draws(seed, index)
    assert sample_draws(seed, index) != sample_draws(seed, index + 1) and sample_draws(
        seed, index
    ) != sample_draws(seed + 1, index)


def test_numbers_of_a_bucket_order_go_through_each_bucket_s_own_rows() -> None:
    rows = [[np.array([0, 2]), np.array([1])], [np.array([1]), np.array([0, 2])]]
    order = BucketOrder([FixedOrder([2, 1]), FixedOrder([1, 2])], rows.__getitem__, shares=[3, 3])
    assert [order.locate(2 * number) for number in range(4)] == [(0, 0), (0, 2), (1, 1), (0, 0)]
    assert [order.locate(2 * number + 1) for number in range(4)] == [(0, 1), (1, 0), (1, 2), (0, 1)]
