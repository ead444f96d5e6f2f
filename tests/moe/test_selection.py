import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe import fused_selection
from diffmoe_scale.moe.selection import (
    kth_largest,
    select_counted,
    select_experts,
    select_top,
    tokens_per_expert,
    training_capacity,
)

# Few distinct values: most pools hold ties.
POOLS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 24).flatmap(
        lambda n: st.lists(st.lists(st.integers(-2, 2), min_size=n, max_size=n), min_size=rows, max_size=rows)
    )
)


def best_by_loop(row: list[int], k: int) -> list[bool]:
    winners = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    return [i in winners for i in range(len(row))]


@settings(max_examples=60, deadline=None)
@given(POOLS, st.integers(1, 24))
def test_top_selection_takes_the_k_best_and_the_first_of_equals(pool, k):
    k = min(k, len(pool[0]))
    scores, expected = torch.tensor(pool, dtype=torch.float32), [best_by_loop(row, k) for row in pool]
    assert select_top(scores, k).tolist() == expected
    assert fused_selection.select_top(scores, k).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(POOLS, st.data())
def test_counted_selection_takes_a_number_of_its_own_for_each_expert(pool, data):
    counts = [data.draw(st.integers(0, len(pool[0]))) for _ in pool]
    mask = select_counted(torch.tensor(pool, dtype=torch.float32), torch.tensor(counts))
    assert mask.tolist() == [best_by_loop(row, count) for row, count in zip(pool, counts, strict=True)]


@settings(max_examples=30, deadline=None)
@given(POOLS, st.integers(1, 24))
def test_kth_largest_is_the_kth_of_a_descending_sort(pool, k):
    k = min(k, len(pool[0]))
    assert kth_largest(torch.tensor(pool, dtype=torch.float32), k).tolist() == [
        sorted(row, reverse=True)[k - 1] for row in pool
    ]


def test_token_choice_takes_the_first_of_equal_experts():
    assert select_experts(torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]]), 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


@pytest.mark.parametrize("capacity, num_tokens, num_experts", [(1.0, 3, 4), (2.0, 3, 4), (0.1, 16, 4)])
def test_a_pool_too_small_for_its_experts_is_an_error(capacity, num_tokens, num_experts):
    with pytest.raises(ValueError, match=r"expected at least 1, and as many tokens as experts"):
        tokens_per_expert(capacity, num_tokens, num_experts)


@pytest.mark.parametrize(
    "capacity, multiple, expected", [(1.0, 1, 25), (1.0, 16, 16), (1.3, 16, 32), (1.0, 4, 24)]
)
def test_tokens_of_an_expert_are_rounded_down_to_the_multiple(capacity, multiple, expected):
    assert tokens_per_expert(capacity, 100, 4, multiple=multiple) == expected


def test_capacity_goes_linearly_from_start_to_end_and_stays_there():
    config = MoEConfig(capacity=2.0, capacity_start=4.0, capacity_steps=4)
    assert [training_capacity(config, step) for step in (1, 2, 3, 4, 5, 100, None)] == [
        4.0,
        3.5,
        3.0,
        2.5,
        2.0,
        2.0,
        2.0,
    ]


def test_capacity_without_a_schedule_is_the_same_in_every_step():
    assert [training_capacity(MoEConfig(capacity=1.5), step) for step in (1, 2, 1000, None)] == [1.5] * 4


def test_capacity_is_that_of_the_first_resolution_that_holds_the_image():
    config = MoEConfig(capacity=1.0, capacity_by_resolution=((256, 2.0), (512, 1.5)))
    pixels = (1, 256 * 240, 256**2, 256**2 + 1, 512**2, 512**2 + 16, 1024**2, math.inf)
    assert [training_capacity(config, 7, image_pixels=count) for count in pixels] == [
        2.0,
        2.0,
        2.0,
        1.5,
        1.5,
        1.0,
        1.0,
        1.0,
    ]


def test_a_schedule_goes_to_the_capacity_of_the_resolution():
    config = MoEConfig(
        capacity=1.0, capacity_start=4.0, capacity_steps=2, capacity_by_resolution=((256, 2.0),)
    )
    assert [training_capacity(config, step, image_pixels=256**2) for step in (1, 2, 3, None)] == [4, 3, 2, 2]
    assert [training_capacity(config, step) for step in (1, 2, 3, None)] == [4, 2.5, 1, 1]


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"capacity_steps": 5}, r"moe.capacity_start is 0.0; expected above 0 and at most moe.num_experts"),
        ({"capacity_start": 2.0}, r"moe.capacity_start is 2.0; .* exactly when moe.capacity_steps is set"),
        (
            {"capacity_steps": 5, "capacity_start": 9.0},
            r"moe.capacity_start is 9.0; .* at most moe.num_experts \(8\)",
        ),
        ({"capacity_steps": -1}, r"moe.capacity_steps is -1; expected 0 to "),
        (
            {"capacity_steps": 5, "capacity_start": 2.0, "router": "token_choice"},
            r"moe.capacity_steps is 5; expected 0 for moe.router 'token_choice'",
        ),
    ],
)
def test_half_a_schedule_is_an_error(settings, match):
    with pytest.raises(ValueError, match=match):
        MoEConfig(**settings)
