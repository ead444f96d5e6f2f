import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffmoe_scale.prepare.duplicates import find_duplicates, look_of

GRAY = (128, 128, 128)


@given(
    codes=st.lists(st.integers(0, 2**64 - 1).map(lambda code: code & 0xF0000000000000F1), max_size=30),
    distance=st.integers(0, 5),
)
def test_what_is_found_is_what_comparing_all_pairs_finds(codes: list[int], distance: int) -> None:
    expected: list[int] = []
    for number, code in enumerate(codes):
        firsts = [other for other in sorted(set(expected)) if (code ^ codes[other]).bit_count() <= distance]
        expected.append(firsts[0] if firsts else number)
    assert find_duplicates([(code, GRAY) for code in codes], max_distance=distance) == expected


def test_a_smaller_copy_looks_alike_and_another_picture_or_colour_does_not() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    first, other = (Image.fromarray(pixels).resize((200, 160), Image.Resampling.BICUBIC) for pixels in coarse)
    buffer = io.BytesIO()
    first.resize((120, 96)).save(buffer, "JPEG", quality=70)
    tinted = Image.blend(first, Image.new("RGB", first.size, (255, 0, 0)), 0.2)
    looks = [look_of(image) for image in (first, other, Image.open(buffer), tinted)]
    assert find_duplicates(looks, max_distance=4) == [0, 1, 0, 3]
