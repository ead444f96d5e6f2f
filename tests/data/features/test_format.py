from dataclasses import replace

import numpy as np
import pytest
import torch

from diffmoe_scale.data.features.format import pack_sample, stored_original, unpack_sample
from diffmoe_scale.data.features.source import PRECISIONS, CaptionFeatures, FeatureSet
from diffmoe_scale.data.reading.decoder import FeatureDecoder
from diffmoe_scale.data.reading.pictures import Size
from tests.data.features.test_source import SOURCE, SQUARE, array_of, caption, pack, values, with_array

BF16_INF, BF16_NAN, FP8_NAN = 0x7F80, 0xFFC1, 0xFF


@pytest.mark.parametrize(
    ("precision", "bits"), [("bf16", BF16_INF), ("bf16", 0xFF80), ("bf16", BF16_NAN), ("fp8", FP8_NAN)]
)
@pytest.mark.parametrize("name", ["latents_VCHW", "tokens_LT", "pooled_KP"])
def test_numbers_that_are_not_finite_are_refused(precision: str, bits: int, name: str) -> None:
    source = replace(SOURCE, precision=precision)
    data = pack(torch.ones(1, 2, 3, 3), [caption(3, 0.5)], [1.0], precision=precision)
    found = unpack_sample(data, source, SQUARE)
    array = array_of(found, name).copy()
    array[(-1,) * array.ndim] = bits
    found = with_array(found, name, array)
    with pytest.raises(ValueError, match=f"1 of {array.size} numbers of {name} are inf or NaN"):
        found.latents(0)
        found.caption(0)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_largest_and_smallest_numbers_of_a_format_are_finite(precision: str) -> None:
    info = torch.finfo(PRECISIONS[precision])
    latents = torch.tensor([info.max, info.min, info.tiny, -0.0]).reshape(1, 1, 2, 2)
    source = replace(SOURCE, precision=precision, channels=1)
    found = unpack_sample(pack(latents, [], [], precision=precision), source, Size(8, 8))
    assert torch.equal(values(found.latents(0).bits_CHW, precision), latents[0])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("origin_Z", [-1, 90, 0, 15], "made from a picture of -1 x 90"),
        ("origin_Z", [60, 0, 0, 15], "60 x 0; expected sides of 1"),
        ("origin_Z", [60, 2**30, 0, 15], "expected sides of 1 to 1048576"),
        ("origin_Z", [60, 90, -7, 15], "cut -7 rows"),
        ("origin_Z", [60, 90, 0, 2**30], "columns from the corner"),
        ("lengths_K", [-1, 6], r"captions of \[-1, 6\] tokens"),
        ("lengths_K", [0, 5], "expected at least 1"),
        ("weights_K", [float("nan"), 1.0], "drawn by the weights"),
        ("weights_K", [float("inf"), 1.0], "drawn by the weights"),
        ("weights_K", [-1.0, 2.0], "drawn by the weights"),
        ("weights_K", [0.0, 0.0], "one above 0"),
    ],
)
def test_absurd_sizes_lengths_and_weights_are_refused(name: str, array: list[float], message: str) -> None:
    data = pack(torch.zeros(1, 2, 3, 3), [caption(3, 0.5), caption(2, 1.5)], [1.0, 2.0])
    found = unpack_sample(data, SOURCE, SQUARE)
    found = with_array(
        found, name, np.array(array, array_of(found, name).dtype if name != "weights_K" else np.float32)
    )
    with pytest.raises(ValueError, match=message):
        found.latents(0)
        found.caption_weights()


def test_an_absurd_original_size_has_no_bucket() -> None:
    data = pack_sample(torch.zeros(1, 2, 3, 3), [], [], original=Size(-5, 90), crop=(0, 15), precision="bf16")
    with pytest.raises(ValueError, match="made from a picture of -5 x 90"):
        stored_original(data)


@pytest.mark.parametrize(
    ("text", "other"), [(b'"shape":[5,4]', b'"shape":[5,3]'), (b'"shape":[2,5]', b'"shape":[5,2]')]
)
def test_a_damaged_shape_is_refused(text: bytes, other: bytes) -> None:
    data = pack(torch.zeros(1, 2, 3, 3), [caption(3, 0.5), caption(2, 1.5)], [1.0, 2.0])
    assert text in data
    with pytest.raises(ValueError):
        unpack_sample(data.replace(text, other), SOURCE, SQUARE).caption_weights()


@pytest.mark.slow
def test_whatever_bit_is_flipped_features_are_refused_or_finite() -> None:
    data = pack(torch.randn(1, 2, 3, 3), [caption(3, 0.5), caption(2, 1.5)], [1.0, 2.0])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = unpack_sample(bytes(flipped), SOURCE, SQUARE)
            latents, weights = found.latents(0), found.caption_weights()
            captions = [found.caption(number) for number in range(len(weights))]
        except (AttributeError, AssertionError, KeyError, TypeError, ValueError):
            continue
        texts = [array for (c,) in captions for array in (c.tokens_LT, c.pooled_P) if array is not None]
        arrays = [latents.bits_CHW, *texts]
        assert all(values(array).isfinite().all() for array in arrays), bit
        assert min(latents.original) > 0 and all(weight >= 0 for weight in weights), bit


def test_features_of_another_width_than_the_set_s_are_refused() -> None:
    empty = CaptionFeatures(torch.zeros(1, 6).bfloat16(), torch.zeros(5).bfloat16())
    data = pack(torch.zeros(1, 2, 3, 3), [caption(3, 0.5)], [1.0])
    decoder = FeatureDecoder(FeatureSet(SOURCE, (empty,)))
    with pytest.raises(ValueError, match=r"widths \(4, 5\); expected \(6, 5\)"):
        decoder.decode(data, SQUARE, is_flipped=False, oddities=set())
