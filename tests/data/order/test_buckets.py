import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.order.buckets import bucket_size, cropped_share, nearest_bucket
from diffmoe_scale.data.order.plan import BatchPlan, Chunk, Position, build_plan, fill_rate
from diffmoe_scale.data.reading.pictures import Size

TWELVE = (0.5, 0.5625, 0.6667, 0.75, 0.8, 0.9, 1.0, 1.25, 1.3333, 1.5, 1.7778, 2.0)
COUNTS = st.lists(st.integers(0, 60), min_size=12, max_size=12).filter(any)


def _plan(counts: list[int], *, resolutions: tuple[tuple[int, int], ...] = ()) -> BatchPlan:
    config = BucketConfig(enabled=True, aspects=TWELVE, step=8, resolutions=resolutions)
    return build_plan(config, counts, image_size=64, global_batch=16, micro_batch=4)


def _start(plan: BatchPlan) -> Position:
    return plan.position(step=0, samples=0, by_bucket={})


def _steps(plan: BatchPlan, position: Position, number: int, *, dp_size: int = 1) -> list[list[Chunk]]:
    """The chunks of all ranks, step by step, in the order of their places."""
    each = plan.micro_batches // dp_size
    ranks = [
        list(itertools.islice(plan.chunks(position, dp_rank=rank, dp_size=dp_size), number * each))
        for rank in range(dp_size)
    ]
    return [
        [chunks[step * each + turn] for turn in range(each) for chunks in ranks] for step in range(number)
    ]


@settings(deadline=None, max_examples=30)
@given(counts=COUNTS, dp_size=st.sampled_from([2, 4]), stop=st.integers(0, 20), first=st.integers(2, 20))
def test_every_step_has_one_size_and_is_the_same_for_any_ranks_from_any_stop(
    counts: list[int], dp_size: int, stop: int, first: int
) -> None:
    plan = _plan(counts, resolutions=((1, 32), (first, 64)))
    unstopped = _steps(plan, _start(plan), 30)
    assert all(
        len({chunk.size for chunk in step}) == 1 and len({len(chunk.numbers) for chunk in step}) == 1
        for step in unstopped
    )
    position = _start(plan)
    for _ in range(stop):
        position = plan.advance(position)
    assert position.samples == sum(len(chunk.numbers) for step in unstopped[:stop] for chunk in step)
    # Through what a checkpoint keeps.
    resumed = plan.position(step=position.step, samples=position.samples, by_bucket=plan.by_bucket(position))
    assert _steps(plan, resumed, 30 - stop, dp_size=dp_size) == unstopped[stop:]


@settings(deadline=None, max_examples=30)
@given(counts=COUNTS, number=st.integers(1, 60))
def test_no_number_is_left_out_or_taken_twice(counts: list[int], number: int) -> None:
    plan = _plan(counts)
    taken = [
        value for step in _steps(plan, _start(plan), number) for chunk in step for value in chunk.numbers
    ]
    by_bucket = [sorted(value // 12 for value in taken if value % 12 == bucket) for bucket in range(12)]
    assert all(numbers == list(range(len(numbers))) for numbers in by_bucket)
    assert all(not numbers for numbers, count in zip(by_bucket, counts, strict=True) if count == 0)


@settings(deadline=None, max_examples=30)
@given(counts=COUNTS, number=st.integers(1, 60))
def test_buckets_stay_within_a_batch_of_the_same_place_in_the_epoch(counts: list[int], number: int) -> None:
    plan = _plan(counts)
    position = _start(plan)
    for _ in range(number):
        position = plan.advance(position)
    batches = [plan.micro_batches * shape.count for shape in plan.shapes(1)]
    filled = [bucket for bucket in range(12) if counts[bucket]]
    for one, other in itertools.permutations(filled, 2):
        # The one's last batch came before the other's next: the middle of the first is not behind that of the
        # second.
        if position.consumed[one]:
            last = Fraction(2 * position.consumed[one] - batches[one], 2 * counts[one])
            assert last <= Fraction(2 * position.consumed[other] + batches[other], 2 * counts[other])


def test_a_global_batch_changed_on_the_way_goes_on_behind_the_samples_seen() -> None:
    plan = _plan([30] * 12)
    position = plan.advance(plan.advance(_start(plan)))
    (step,) = _steps(replace(plan, micro_batches=2), position, 1)
    bucket = step[0].numbers[0] % 12
    assert step[0].numbers[0] // 12 == position.consumed[bucket] and len(step) == 2


def test_a_checkpoint_of_other_buckets_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"aspect ratios 0\.5, 2 but the run has 0\.5, 0\.5625, .*restore the settings of buckets",
    ):
        _plan([1] * 12).position(step=3, samples=8, by_bucket={"0.5": 4, "2": 4})
    with pytest.raises(ValueError, match=r"none \(one square size\)"):
        _plan([1] * 12).position(step=3, samples=8, by_bucket={})
    with pytest.raises(ValueError, match=r"0\.5, 2 but the run has 1"):
        build_plan(BucketConfig(), [9], image_size=4, global_batch=4, micro_batch=2).position(
            step=3, samples=8, by_bucket={"0.5": 4, "2": 4}
        )


@given(aspect=st.floats(0.25, 4.0), resolution=st.integers(8, 64).map(lambda n: 8 * n))
def test_a_bucket_has_at_most_the_square_s_pixels_and_nearly_its_aspect(
    aspect: float, resolution: int
) -> None:
    height, width = bucket_size(aspect, resolution=resolution, step=8)
    assert height % 8 == width % 8 == 0 and 0 < height * width <= resolution**2
    # From 64 pixels on a side has 4 steps or more: neighbours differ by less than a third.
    assert abs(np.log(width / height / aspect)) < np.log(4 / 3)
    assert bucket_size(1.0, resolution=resolution, step=8) == (resolution, resolution)


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [(1.5, (832, 1248)), (0.5625, (1360, 768)), (1.7778, (768, 1360)), (1.0, (1024, 1024))],
)
def test_sizes_of_a_megapixel(aspect: float, expected: tuple[int, int]) -> None:
    assert bucket_size(aspect, resolution=1024, step=16) == expected


def test_a_step_too_coarse_for_an_aspect_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"buckets\.step is 16: too coarse for the aspect ratio 4 at a resolution of 16"
    ):
        bucket_size(4.0, resolution=16, step=16)


def test_an_image_goes_to_the_nearest_ratio_and_an_unknown_one_to_the_square() -> None:
    sizes_RZ = np.array(
        [[100, 100], [100, 190], [10, 1000], [190, 100], [0, 0], [100, 71], [100, 70]], dtype=np.uint32
    )
    # Between 0.5 and 1 the middle is the root of a half, 0.7071.
    assert nearest_bucket(sizes_RZ, [0.5, 1.0, 2.0]).tolist() == [1, 2, 2, 0, 1, 1, 0]


def test_cropping_to_another_ratio_costs_what_juts_out() -> None:
    sizes_RZ = np.array([[100, 200], [200, 100], [100, 100]], dtype=np.uint32)
    np.testing.assert_allclose(cropped_share(sizes_RZ, 1.0), [0.5, 0.5, 0.0])


def test_smaller_images_come_in_larger_batches_up_to_the_tokens_of_squares() -> None:
    plan = _plan([30] * 12, resolutions=((1, 32), (5, 64)))
    for first in (1, 5):
        assert all(
            0.7 * 4 * 64**2 < shape.count * shape.size.height * shape.size.width <= 4 * 64**2
            for shape in plan.shapes(first)
        )
    squares = [plan.shapes(first)[TWELVE.index(1.0)] for first in (4, 5)]
    assert [(shape.size, shape.count) for shape in squares] == [(Size(32, 32), 16), (Size(64, 64), 4)]
    fixed = build_plan(
        BucketConfig(enabled=True, constant_tokens=False),
        [9] * 11,
        image_size=64,
        global_batch=16,
        micro_batch=4,
    )
    assert {shape.count for shape in fixed.shapes(1)} == {4}


def test_fill_rate_is_the_mean_over_the_steps_of_an_epoch() -> None:
    plan = _plan([32 * 3] * 12)
    steps = _steps(plan, _start(plan), 12 * 6)
    pixels = [
        sum(len(chunk.numbers) * chunk.size.height * chunk.size.width for chunk in step) for step in steps
    ]
    assert Counter(step[0].numbers[0] % 12 for step in steps) == dict.fromkeys(range(12), 6)
    assert fill_rate(plan, 1, budget=4 * 64**2) == pytest.approx(sum(pixels) / len(steps) / (16 * 64**2))
