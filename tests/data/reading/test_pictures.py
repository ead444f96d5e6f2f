import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.data.reading.pictures import Size, decode_image, open_image
from tests.data.reading.corners import CORNERS, WHITE, decode
from tests.data.samples import encode


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_picture_of_the_right_size_keeps_its_pixels(kind: str) -> None:
    pixels = decode(Image.fromarray(CORNERS), kind)
    assert pixels.dtype == np.uint8 and (pixels == CORNERS).all()


def test_lossless_webp_and_jpeg_2000_keep_their_pixels() -> None:
    assert (decode(Image.fromarray(CORNERS), "WEBP", lossless=True) == CORNERS).all()
    assert (
        decode(Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1)), "JPEG2000", size=32)[::16, ::16]
        == CORNERS
    ).all()


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    assert (decode(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (33, 65)])
def test_the_centre_of_the_longer_side_is_kept(width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 255
    decoded = decode(Image.fromarray(pixels), size=8)
    # The filter reaches beyond the square's edge.
    assert decoded.shape == (8, 8, 3) and (decoded[1:-1, 1:-1] > 250).all()


def test_an_even_picture_stays_even_at_any_size() -> None:
    for size in (1, 3, 32, 100):
        assert (decode(Image.new("RGB", (37, 23), (10, 200, 90)), size=size) == (10, 200, 90)).all()


def test_flipped_is_mirrored_left_to_right() -> None:
    data = encode(Image.fromarray(CORNERS))
    assert (
        decode_image(data, size=Size(2, 2), background=WHITE, is_flipped=True).pixels_HWC == CORNERS[:, ::-1]
    ).all()


def test_a_jpeg_decoded_in_draft_looks_like_the_whole() -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(
        np.stack(
            [
                np.broadcast_to(ramp, (512, 512)),
                np.broadcast_to(ramp[:, None], (512, 512)),
                np.full((512, 512), 128, np.uint8),
            ],
            -1,
        )
    )
    drafted = decode(image, "JPEG", size=16, quality=95).astype(int)
    whole = np.asarray(image).reshape(16, 32, 16, 32, 3).mean((1, 3))
    # Another filter than the mean; the outermost row has no neighbours.
    assert abs(drafted - whole)[1:-1, 1:-1].max() < 3


def test_broken_pictures_raise() -> None:
    good = encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG"
    )
    with pytest.raises(OSError, match="truncated"):
        open_image(good[: len(good) // 2])
    with pytest.raises(ValueError, match="an empty file"):
        open_image(b"")
    for data in (b"not a picture", good[20:]):
        with pytest.raises(ValueError, match="no picture of a kind that is read"):
            open_image(data)


def test_kinds_that_are_no_photographs_are_refused() -> None:
    for kind in ("EPS", "ICO", "PDF"):
        with pytest.raises(ValueError, match="no picture of a kind that is read"):
            open_image(encode(Image.new("RGB", (16, 16)), kind))


def test_a_picture_covers_the_size_and_tells_what_was_cut_off() -> None:
    image = Image.new("RGB", (80, 20), "white")
    image.paste("red", (16, 0, 64, 20))
    picture = decode_image(encode(image), size=Size(10, 16), background=WHITE)
    # Halved to 40 x 10, of which the 16 columns in the middle stay.
    assert picture.pixels_HWC.shape == (10, 16, 3) and (picture.pixels_HWC == (255, 0, 0)).all()
    assert (picture.original, picture.crop) == ((20, 80), (0, 12))
    tall = decode_image(encode(image.rotate(90, expand=True)), size=Size(16, 10), background=WHITE)
    assert (tall.original, tall.crop) == ((80, 20), (12, 0)) and (tall.pixels_HWC == (255, 0, 0)).all()
