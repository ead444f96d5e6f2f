import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffmoe_scale.data.reading.pictures import (
    MAX_PIXELS,
    BadPicture,
    Size,
    decode_image,
    flatten,
    open_image,
    stored_size,
)
from tests.data.samples import encode

WHITE = (255, 255, 255)
# Red, green / blue, white: each orientation of it looks different.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
# EXIF orientation to what a viewer does with the stored pixels.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def _decode(image: Image.Image, kind: str = "PNG", *, size: int = 2, **options: object) -> np.ndarray:
    return decode_image(encode(image, kind, **options), size=Size(size, size), background=WHITE).pixels_HWC


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_picture_of_the_right_size_keeps_its_pixels(kind: str) -> None:
    pixels = _decode(Image.fromarray(CORNERS), kind)
    assert pixels.dtype == np.uint8 and (pixels == CORNERS).all()


def test_lossless_webp_and_jpeg_2000_keep_their_pixels() -> None:
    assert (_decode(Image.fromarray(CORNERS), "WEBP", lossless=True) == CORNERS).all()
    assert (
        _decode(Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1)), "JPEG2000", size=32)[::16, ::16]
        == CORNERS
    ).all()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (_decode(Image.fromarray(CORNERS), exif=exif.tobytes()) == UPRIGHT[orientation](CORNERS)).all()


def test_an_upright_jpeg_has_its_sides_swapped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif.tobytes())).size == (20, 30)


def _exif_with(tag: int, kind: int, count: int, value: bytes) -> bytes:
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        _exif_with(0x8769, 5, 1, struct.pack("<I", 0)),
        _exif_with(0x010F, 5, 1, struct.pack("<I", 8)),
        _exif_with(0x8769, 2, 4, b"abc\0"),
        _exif_with(0x0100, 2, 4, b"abc\0"),
    ],
    ids=[
        "no header",
        "far directory",
        "folder as a fraction",
        "fraction over the header",
        "folder as text",
        "width as text",
    ],
)
def test_malformed_camera_data_does_not_cost_the_picture(exif: bytes) -> None:
    image = open_image(encode(Image.new("RGB", (6, 6), (200, 10, 30)), exif=exif))
    assert image.mode == "RGB" and (np.asarray(image) == (200, 10, 30)).all()


def test_a_palette_is_resolved() -> None:
    assert (_decode(Image.fromarray(CORNERS).quantize(4)) == CORNERS).all()


def test_grey_and_bilevel_pictures_have_three_equal_channels() -> None:
    grey = np.array([[0, 50], [100, 255]], dtype=np.uint8)
    assert (_decode(Image.fromarray(grey)) == grey[..., None]).all()
    assert (_decode(Image.fromarray(grey > 99)) == np.where(grey > 99, 255, 0)[..., None]).all()


def test_16_bits_are_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 257], [30_000, 65_535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert (_decode(Image.fromarray(grey), kind) == (grey // 257)[..., None]).all()


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        _decode(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")


def test_ink_becomes_light() -> None:
    # C, M, Y, K of 0 to 255; without a colour profile: light = (255 - ink) * (255 - black) / 255.
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    expected = np.array([[[0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0]]])
    large = inks.repeat(16, 0).repeat(16, 1)
    assert (_decode(Image.fromarray(inks, mode="CMYK"), "TIFF") == expected).all()
    # JPEG rounds frequencies.
    assert (
        abs(
            _decode(Image.fromarray(large, mode="CMYK"), "JPEG", size=32, quality=100)[8::16, 8::16].astype(
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


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    assert (_decode(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (33, 65)])
def test_the_centre_of_the_longer_side_is_kept(width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 255
    decoded = _decode(Image.fromarray(pixels), size=8)
    # The filter reaches beyond the square's edge.
    assert decoded.shape == (8, 8, 3) and (decoded[1:-1, 1:-1] > 250).all()


def test_an_even_picture_stays_even_at_any_size() -> None:
    for size in (1, 3, 32, 100):
        assert (_decode(Image.new("RGB", (37, 23), (10, 200, 90)), size=size) == (10, 200, 90)).all()


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
    drafted = _decode(image, "JPEG", size=16, quality=95).astype(int)
    whole = np.asarray(image).reshape(16, 32, 16, 32, 3).mean((1, 3))
    # Another filter than the mean; the outermost row has no neighbours.
    assert abs(drafted - whole)[1:-1, 1:-1].max() < 3


def test_broken_pictures_raise() -> None:
    good = encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG"
    )
    with pytest.raises(OSError, match="truncated"):
        open_image(good[: len(good) // 2])
    for data in (b"", b"not a picture", good[20:]):
        with pytest.raises(ValueError, match="no picture of a kind that is read"):
            open_image(data)


def test_kinds_that_are_no_photographs_are_refused() -> None:
    for kind in ("EPS", "ICO", "PDF"):
        with pytest.raises(ValueError, match="no picture of a kind that is read"):
            open_image(encode(Image.new("RGB", (16, 16)), kind))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = f"P6 {side} {side} 255\n".encode()
    with pytest.raises(ValueError, match="pixels; expected at most"):
        open_image(header)


def test_flatten_leaves_opaque_pictures_alone() -> None:
    image = Image.new("RGB", (2, 2), "red")
    assert flatten(image, WHITE) is image


def test_a_picture_covers_the_size_and_tells_what_was_cut_off() -> None:
    image = Image.new("RGB", (80, 20), "white")
    image.paste("red", (16, 0, 64, 20))
    picture = decode_image(encode(image), size=Size(10, 16), background=WHITE)
    # Halved to 40 x 10, of which the 16 columns in the middle stay.
    assert picture.pixels_HWC.shape == (10, 16, 3) and (picture.pixels_HWC == (255, 0, 0)).all()
    assert (picture.original, picture.crop) == ((20, 80), (0, 12))
    tall = decode_image(encode(image.rotate(90, expand=True)), size=Size(16, 10), background=WHITE)
    assert (tall.original, tall.crop) == ((80, 20), (12, 0)) and (tall.pixels_HWC == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_original_size_is_upright_and_from_before_the_draft(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.new("RGB", (640, 320)), "JPEG", exif=exif)
    expected = Size(640, 320) if orientation in (5, 6, 7, 8) else Size(320, 640)
    assert (
        decode_image(data, size=Size(8, 8), background=WHITE).original
        == expected
        == stored_size(data)
        == stored_size(data[:1000])
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_size_of_a_turned_picture_of_any_kind_is_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (64, 32)), kind, exif=exif)
    assert decode_image(data, size=Size(8, 8), background=WHITE).original == (64, 32) == stored_size(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_malformed_camera_data_hides_no_size(kind: str) -> None:
    data = encode(Image.new("RGB", (64, 32)), kind, exif=b"Exif\0\0MM\0*\0\0")
    assert decode_image(data, size=Size(8, 8), background=WHITE).original == (32, 64) == stored_size(data)


@pytest.mark.parametrize("signs", [900, 3_000_000])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_png_with_long_texts_keeps_its_pixels(signs: int, is_compressed: bool) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * signs, zip=is_compressed)
    texts.add_itxt("prompt", "y" * signs, zip=is_compressed)
    data = encode(Image.new("RGB", (4, 4), (200, 0, 0)), pnginfo=texts)
    picture = decode_image(data, size=Size(4, 4), background=(0, 0, 0))
    assert (picture.pixels_HWC == (200, 0, 0)).all() and stored_size(data) == Size(4, 4)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_a_damaged_header_is_called_that(kind: str) -> None:
    data = encode(Image.new("RGB", (4, 4)), kind)
    if kind == "PNG":
        # A chunk with a wrong checksum before the pixels.
        data = data[:33] + struct.pack(">I", 5) + b"tEXta\0bcd" + bytes(4) + data[33:]
    else:
        data = data[:8]
    with pytest.raises(BadPicture, match=f"begin as a {kind}, whose header is damaged") as raised:
        decode_image(data, size=Size(4, 4), background=(0, 0, 0))
    assert raised.value.kind == "corrupt"
