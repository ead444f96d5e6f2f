from dataclasses import replace
from typing import Any  # settings of any type

import pytest

from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.features.check import check_features, check_shapes
from tests.data.features.test_source import SOURCE

BUCKETS = BucketConfig(enabled=True, aspects=(0.5, 1.0), step=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"autoencoder": "b"}, "autoencoder 'a' instead of 'b'"),
        ({"text": ""}, "text 't' instead of 'none'"),
    ],
)
def test_a_run_with_other_encoders_is_told_which(changed: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"autoencoder": "a", "text": "t", "is_flipped": False}
    check_features(SOURCE, **right)
    with pytest.raises(ValueError, match=message):
        check_features(SOURCE, **right | changed)


def test_a_frozen_encoder_may_read_the_captions_of_a_set_without_text() -> None:
    check_features(replace(SOURCE, text=""), autoencoder="a", text="t", is_flipped=False)


@pytest.mark.parametrize(
    ("image_size", "changed", "message"),
    [
        (16, {}, "image_size 12 instead of 16"),
        (12, {"aspects": (0.5, 1.0, 2.0)}, r"aspects \(0\.5, 1\.0\) instead of \(0\.5, 1\.0, 2\.0\)"),
        (12, {"step": 2}, "step 4 instead of 2"),
        (12, {"enabled": False}, r"aspects \(0\.5, 1\.0\) instead of 'none'"),
        (
            12,
            {"resolutions": ((1, 8), (5, 12))},
            r"buckets\.resolutions is .*; expected none but model\.image_size \(12\)",
        ),
    ],
)
def test_a_run_in_other_shapes_is_told_which(image_size: int, changed: dict[str, Any], message: str) -> None:
    source = replace(SOURCE, aspects=BUCKETS.aspects, step=BUCKETS.step)
    check_shapes(source, image_size=12, buckets=BUCKETS)
    check_shapes(source, image_size=12, buckets=replace(BUCKETS, resolutions=((1, 12),)))
    with pytest.raises(ValueError, match=message):
        check_shapes(source, image_size=image_size, buckets=replace(BUCKETS, **changed))


def test_a_run_in_buckets_refuses_features_of_squares() -> None:
    check_shapes(SOURCE, image_size=12, buckets=BucketConfig())
    with pytest.raises(
        ValueError,
        match=(
            r"aspects 'none' instead of \(0\.5, 1\.0\), step 'none' instead of 4; set "
            r"model\.image_size and buckets"
        ),
    ):
        check_shapes(SOURCE, image_size=12, buckets=BUCKETS)
