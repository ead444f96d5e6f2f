from dataclasses import replace

import numpy as np
import pytest
import torch

from diffmoe_scale.data.features.format import Latents
from diffmoe_scale.data.features.source import FeatureSet, FeatureSource
from diffmoe_scale.data.reading.batch import Failure, Sample, collate, to_unit_range
from diffmoe_scale.data.reading.pictures import Picture, Size
from diffmoe_scale.encoders.text.features import TextFeatures, TextStream
from tests.data.samples import pixels_of

PIXELS = np.array([[[0, 51, 255], [102, 153, 204]], [[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
PICTURE = Picture(PIXELS, original=Size(8, 6), crop=(1, 0))
GOOD = Sample(7, "a.tar/0", PICTURE, caption="a red circle")


def to_bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.bfloat16().view(torch.uint16).numpy()


BAD = Sample(8, "a.tar/1", None, is_dropped=True, failure=Failure("image", "a.tar/1", "OSError: broken"))


def test_pixels_go_from_bytes_to_minus_one_to_one() -> None:
    batch = collate([GOOD], size=Size(2, 2))
    images_BCHW = to_unit_range(pixels_of(batch))
    assert (
        images_BCHW.shape == (1, 3, 2, 2)
        and images_BCHW.dtype == torch.float32
        and images_BCHW.is_contiguous()
    )
    for y, x, channel in np.ndindex(2, 2, 3):
        # One rounding of the quotient.
        assert images_BCHW[0, channel, y, x].item() == pytest.approx(
            int(PIXELS[y, x, channel]) / 127.5 - 1, abs=1e-6
        )


def test_a_failed_sample_keeps_its_row_without_weight() -> None:
    batch = collate([GOOD, BAD, GOOD], size=Size(2, 2))
    assert batch.weight_B.tolist() == [1, 0, 1]
    assert (
        pixels_of(batch).dtype == torch.uint8
        and (pixels_of(batch)[1] == 128).all()
        and batch.captions == ["a red circle", "", "a red circle"]
    )
    assert (
        batch.failures == [BAD.failure]
        and batch.keys == ["a.tar/0", "a.tar/1", "a.tar/0"]
        and batch.indices_B.tolist() == [7, 8, 7]
    )


def test_samples_without_a_caption_count_and_are_named() -> None:
    batch = collate(
        [GOOD, Sample(9, "a.tar/2", PICTURE, is_dropped=True, is_uncaptioned=True)], size=Size(2, 2)
    )
    assert batch.uncaptioned == ["a.tar/2"] and batch.weight_B.tolist() == [1, 1] and batch.failures == []


def test_labels_are_integers() -> None:
    batch = collate(
        [Sample(0, "a", PICTURE, label=3), Sample(1, "b", PICTURE, label=10, is_dropped=True)],
        size=Size(2, 2),
    )
    assert batch.labels_B.dtype == torch.int64 and batch.labels_B.tolist() == [3, 10]


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError):
        collate([GOOD], size=Size(4, 4))


def test_a_batch_knows_original_crop_and_size_of_each_image() -> None:
    assert collate([GOOD, BAD], size=Size(2, 2)).sizes_BZ.tolist() == [[8, 6, 1, 0, 2, 2], [0] * 6]


def test_a_batch_of_latents_knows_them_as_one_of_pictures_and_has_the_shape_of_its_size() -> None:
    source = FeatureSource(
        "a", "", channels=3, factor=2, image_size=4, aspects=(0.5, 2.0), step=2, num_views=1, precision="bf16"
    )
    good = Sample(
        7, "a.tar/0", None, latents=Latents(to_bits(torch.ones(3, 1, 4)), original=Size(8, 30), crop=(0, 1))
    )
    batch = collate([good, BAD], size=Size(2, 8), features=FeatureSet(source))
    assert (
        batch.pixels_BHWC is None
        and batch.latents_BCHW is not None
        and batch.latents_BCHW.shape == (2, 3, 1, 4)
    )
    assert batch.latents_BCHW.mean((1, 2, 3)).tolist() == [1, 0] and batch.sizes_BZ.tolist() == [
        [8, 30, 0, 1, 2, 8],
        [0] * 6,
    ]


def test_pictures_and_features_go_to_the_device_and_the_rest_stays() -> None:
    batch = replace(
        collate([GOOD], size=Size(2, 2)),
        latents_BCHW=torch.zeros(1, 3, 2, 2),
        text=TextFeatures((TextStream(torch.zeros(1, 4, 8), torch.ones(1, 4), torch.zeros(1, 8)),)),
    )
    moved = batch.to(torch.device("meta"))
    assert moved.text is not None and moved.latents_BCHW is not None
    (stream,) = moved.text.streams
    tensors = [pixels_of(moved), moved.latents_BCHW, stream.tokens_BLT]
    assert all(tensor is not None and tensor.is_meta for tensor in tensors)
    assert not moved.weight_B.is_meta and not moved.indices_B.is_meta and moved.keys == batch.keys
