import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.data.reading.pictures import Size, decode_image, flatten
from tests.data.reading.corners import CORNERS, WHITE, decode
from tests.data.samples import encode


def test_a_palette_is_resolved() -> None:
    assert (decode(Image.fromarray(CORNERS).quantize(4)) == CORNERS).all()


def test_grey_and_bilevel_pictures_have_three_equal_channels() -> None:
    grey = np.array([[0, 50], [100, 255]], dtype=np.uint8)
    assert (decode(Image.fromarray(grey)) == grey[..., None]).all()
    assert (decode(Image.fromarray(grey > 99)) == np.where(grey > 99, 255, 0)[..., None]).all()


def test_16_bits_are_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 257], [30_000, 65_535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert (decode(Image.fromarray(grey), kind) == (grey // 257)[..., None]).all()


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        decode(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")


def test_ink_becomes_light() -> None:
    # C, M, Y, K of 0 to 255; without a colour profile: light = (255 - ink) * (255 - black) / 255.
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    expected = np.array([[[0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0]]])
    large = inks.repeat(16, 0).repeat(16, 1)
    assert (decode(Image.fromarray(inks, mode="CMYK"), "TIFF") == expected).all()
    # JPEG rounds frequencies.
    assert (
        abs(
            decode(Image.fromarray(large, mode="CMYK"), "JPEG", size=32, quality=100)[8::16, 8::16].astype(
                int
            )
            - expected
        ).max()
        <= 2
    )


@pytest.mark.parametrize(("alpha", "expected"), [(255, (200, 100, 0)), (0, (0, 0, 255)), (51, (40, 20, 204))])
def test_the_background_shows_through_transparency(alpha: int, expected: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (2, 2), (200, 100, 0, alpha))
    assert (decode_image(encode(image), size=Size(2, 2), background=(0, 0, 255)).pixels_HWC == expected).all()


def test_transparent_colours_of_palettes_grey_and_rgb_show_the_background() -> None:
    palette = Image.fromarray(CORNERS).quantize(4)
    index_of_red = palette.getpixel((0, 0))
    expected = np.where((CORNERS == (255, 0, 0)).all(-1, keepdims=True), (9, 8, 7), CORNERS)
    for image, transparency in ((palette, index_of_red), (Image.fromarray(CORNERS), (255, 0, 0))):
        assert (
            decode_image(
                encode(image, transparency=transparency), size=Size(2, 2), background=(9, 8, 7)
            ).pixels_HWC
            == expected
        ).all()
    grey = encode(Image.fromarray(np.array([[0, 50], [100, 255]], dtype=np.uint8)), transparency=50)
    assert decode_image(grey, size=Size(2, 2), background=(9, 8, 7)).pixels_HWC[0].tolist() == [
        [0, 0, 0],
        [9, 8, 7],
    ]


def test_flatten_leaves_opaque_pictures_alone() -> None:
    image = Image.new("RGB", (2, 2), "red")
    assert flatten(image, WHITE) is image
