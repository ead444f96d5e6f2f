import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffmoe_scale.data.reading.pictures import (
    MAX_PIXELS,
    BadPicture,
    Size,
    decode_image,
    open_image,
    stored_size,
)
from tests.data.reading.corners import CORNERS, WHITE, decode
from tests.data.samples import encode

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


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode(Image.fromarray(CORNERS), exif=exif.tobytes()) == UPRIGHT[orientation](CORNERS)).all()


def test_an_upright_jpeg_has_its_sides_swapped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif.tobytes())).size == (20, 30)


def exif_with(tag: int, kind: int, count: int, value: bytes) -> bytes:
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif_with(0x8769, 5, 1, struct.pack("<I", 0)),
        exif_with(0x010F, 5, 1, struct.pack("<I", 8)),
        exif_with(0x8769, 2, 4, b"abc\0"),
        exif_with(0x0100, 2, 4, b"abc\0"),
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


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = f"P6 {side} {side} 255\n".encode()
    with pytest.raises(ValueError, match="pixels; expected at most"):
        open_image(header)


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
