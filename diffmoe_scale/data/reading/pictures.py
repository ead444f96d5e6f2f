"""Encoded picture to an RGB array of the size that training wants."""

import contextlib
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow's other formats start programs (EPS) or are no photographs.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Just below the size from which Pillow warns of a decompression bomb.
MAX_PIXELS = 89_000_000
# Camera orientations that lie on their side.
LYING = (5, 6, 7, 8)
RGB = tuple[int, int, int]
PNG = b"\x89PNG\r\n\x1a\n"
PICTURE_MARKS = {PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
"""How files of some formats begin."""
# Pillow's limit is 1 MiB of text, which 1,016 compressed bytes can give.
LONGEST_TEXT = 1000
# Holds the orientation.
EXIF_TEXT = b"Raw profile type "


class BadPicture(ValueError):
    """A picture that is not read; `kind` says why, as in batch.FAILURES."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Size(NamedTuple):
    """Of a picture, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Picture:
    """uint8 RGB, and what SDXL calls micro-conditions (arXiv 2307.01952 section 2.2)."""

    pixels_HWC: np.ndarray
    original: Size
    """Of the whole upright picture as it is stored."""
    crop: tuple[int, int]
    """Rows above and columns left of what was kept, in pixels of the result."""


def decode_image(
    data: bytes, *, size: Size, background: RGB, is_flipped: bool = False, oddities: set[str] | None = None
) -> Picture:
    """A picture upright, transparency over `background`, scaled to cover `size`, centre kept.

    `oddities` is filled with what had to be converted (kinds of batch.NOTES).

    Raises: whatever Pillow raises for broken data; BadPicture for other data, too many pixels or an unknown
    number format.
    """
    stored, original = _open(data, draft_size=2 * max(size), oddities=oddities)
    image = flatten(stored, background)
    left, top, right, bottom = _centre_box(*image.size, size)
    scale = size.height / (bottom - top)
    if image.size != (size.width, size.height):
        image = image.resize(
            (size.width, size.height),
            Image.Resampling.LANCZOS,
            box=(left, top, right, bottom),
            reducing_gap=3.0,
        )
    pixels = np.asarray(image)
    return Picture(
        pixels[:, ::-1] if is_flipped else pixels,
        original=original,
        crop=(round(top * scale), round(left * scale)),
    )


def stored_size(data: bytes) -> Size:
    """Of an upright picture, from its header; its first bytes can be enough. Raises: as `decode_image`."""
    image = identify(data)
    orientation = None
    # Pillow turns a TIFF itself, and would decode a PNG whole in search of an orientation behind the pixels.
    if image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info):
        with contextlib.suppress(Exception):  # as in _upright
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    return Size(image.width, image.height) if orientation in LYING else Size(image.height, image.width)


def open_image(
    data: bytes, *, draft_size: int | None = None, oddities: set[str] | None = None
) -> Image.Image:
    """A decoded, upright picture in mode RGB or RGBA, 8 bits a channel.

    `draft_size` lets the JPEG decoder shrink by a power of two while both sides keep that length: several
    times faster.
    """
    return _open(data, draft_size=draft_size, oddities=oddities)[0]


def _open(data: bytes, *, draft_size: int | None, oddities: set[str] | None) -> tuple[Image.Image, Size]:
    """The picture of `open_image`, and its upright size from before `draft_size`."""
    image = identify(data)
    width, height = image.size
    if draft_size is not None:
        image.draft(None, (draft_size, draft_size))
    image.load()
    if oddities is not None:
        oddities |= _oddities(image)
    is_wide = image.width > image.height
    image = _upright(image)
    # No need to know in which way a square was turned.
    is_turned = is_wide != (image.width > image.height)
    return _to_8_bit(image), Size(width, height) if is_turned else Size(height, width)


def identify(data: bytes) -> Image.Image:
    """A picture whose header alone was read. Raises: BadPicture."""
    try:
        image: Image.Image = Image.open(io.BytesIO(_without_long_texts(data)), formats=PICTURE_FORMATS)
    except UnidentifiedImageError as error:
        kind = next((kind for mark, kind in PICTURE_MARKS.items() if data.startswith(mark)), "")
        if kind:
            message = f"{len(data)} bytes that begin as a {kind}, whose header is damaged or cut off"
            raise BadPicture("corrupt", message) from error
        # Pillow's message names the address of the buffer.
        message = (
            "an empty file"
            if not data
            else f"{len(data)} bytes that begin with {data[:8]!r} are no picture of a kind that is "
            f"read ({', '.join(PICTURE_FORMATS)})"
        )
        raise BadPicture("no_picture", message) from error
    except Image.DecompressionBombError as error:
        # Pillow's own limit is twice ours; it raises before the size can be compared.
        raise BadPicture("bomb", str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture("bomb", f"{image.width} x {image.height} pixels; expected at most {MAX_PIXELS}")
    return image


def _without_long_texts(data: bytes) -> bytes:
    """A PNG without its long compressed texts (prompts, workflows): Pillow refuses the picture for them."""
    if not data.startswith(PNG):
        return data
    parts, position, kept_from = [], len(PNG), 0
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind, beginning = data[position + 4 : position + 8], data[position + 8 : position + 40]
        is_text = kind in (b"zTXt", b"iTXt", b"tEXt") and not beginning.startswith(EXIF_TEXT)
        if is_text and end - position > LONGEST_TEXT:
            parts.append(data[kept_from:position])
            kept_from = end
        position = end
    return b"".join(parts) + data[kept_from:] if parts else data


def _oddities(image: Image.Image) -> set[str]:
    found = {
        "palette": image.mode in ("P", "PA"),
        "cmyk": image.mode == "CMYK",
        "16_bit": image.mode == "I" or image.mode.startswith("I;16"),
    }
    found["alpha"] = image.has_transparency_data
    with contextlib.suppress(Exception):  # as in _upright
        found["rotated"] = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return {kind for kind, is_there in found.items() if is_there}


def flatten(image: Image.Image, background: RGB) -> Image.Image:
    """An RGB or RGBA picture as RGB, with `background` behind transparent pixels."""
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _upright(image: Image.Image) -> Image.Image:
    # Malformed camera data raises nearly anything, struct.error and AttributeError too, and says nothing
    # about the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA") and not (image.mode == "RGB" and "transparency" in image.info):
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would clip 16 bits at 255: nearly all white.
        return Image.fromarray(
            (np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
        ).convert("RGB")
    if image.mode == "F":
        raise BadPicture(
            "float_pixels", "the picture has floating-point pixels of unknown range; expected 8 or 16 bits"
        )
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _centre_box(width: int, height: int, size: Size) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the largest box in the middle that has the proportions of `size`."""
    box_width = min(width, height * size.width / size.height)
    box_height = min(height, width * size.height / size.width)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height
