"""Captions beside their cached features, for a run with frozen encoders and one that is trained along."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.source import SampleSource
from tests.data.reading.sources import make_source

CAPTIONS = ("a red house", "a blue house", "two long words")
SOURCE = FeatureSource(
    "a", "t", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
)
EMPTY = (CaptionFeatures(torch.zeros(1, 4).bfloat16(), None),)


def cached_source(
    tmp_path: Path, *, count: int, reads_text: bool, weights: dict[str, float] | None = None
) -> SampleSource:
    """Each sample has all captions, caption k as k + 1 tokens."""
    captions = [(CaptionFeatures(torch.ones(number, 4).bfloat16(), None),) for number in (1, 2, 3)]
    size = Size(4, 4)
    data = pack_sample(
        torch.ones(1, 1, 2, 2), captions, [0.5, 0.25, 0.25], original=size, crop=(0, 0), precision="bf16"
    )
    record = f'{{"other": ["{CAPTIONS[1]}", "{CAPTIONS[2]}"]}}'.encode()
    members = {"safetensors": data, "txt": CAPTIONS[0].encode(), "json": record}
    source = make_source(
        tmp_path,
        [count],
        replaced={f"0_{row}": members for row in range(count)},
        is_augmented=True,
        caption_dropout=0.3,
        caption_weights=weights or {"txt": 0.5, "other": 0.5},
    )
    return replace(source, features=FeatureSet(SOURCE, EMPTY), reads_text=reads_text)


def test_text_and_features_are_of_the_same_caption(tmp_path: Path) -> None:
    seen, source = set(), cached_source(tmp_path, count=60, reads_text=True)
    for sample in map(source.load, range(60)):
        assert sample.failure is None and bool(sample.text) == bool(sample.caption) != sample.is_dropped
        if sample.text:
            number = len(sample.text[0].tokens_LT) - 1
            assert sample.caption == CAPTIONS[number]
            seen.add(number)
    assert seen == {0, 1, 2}


def test_no_text_is_read_where_nothing_is_trained_along(tmp_path: Path) -> None:
    source = cached_source(tmp_path, count=20, reads_text=False)
    samples = [source.load(index) for index in range(20)]
    assert not any(sample.caption for sample in samples) and any(sample.text for sample in samples)


@pytest.mark.parametrize("weights", [{"txt": 0.9, "other": 0.1}, {"txt": 1.0, "other": 0.0}])
def test_captions_that_are_drawn_by_other_weights_than_the_cached_ones_are_refused(
    tmp_path: Path, weights: dict[str, float]
) -> None:
    source = cached_source(tmp_path, count=8, reads_text=True, weights=weights)
    failures = [sample.failure for sample in map(source.load, range(8)) if sample.failure]
    assert failures and all(failure.kind == "features" for failure in failures)
    assert "set data.caption_weights as it was when the features were made" in failures[0].reason
