"""Encoded picture to a square RGB array."""

import contextlib
import io

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow's other formats start programs (EPS) or are no photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Just below the size from which Pillow warns of a decompression bomb.
MAX_PIXELS = 89_000_000
RGB = tuple[int, int, int]


class BadPicture(ValueError):
    """A picture that is not read; `kind` says why, as in batch.FAILURES."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_image(data: bytes, *, image_size: int, background: RGB, is_flipped: bool = False, oddities: set[str] | None = None) -> np.ndarray:
    """A picture as uint8 [H, W, 3]: upright, transparency over `background`, shorter side to `image_size`, centre kept.

    `oddities` is filled with what had to be converted (kinds of batch.NOTES).

    Raises: whatever Pillow raises for broken data; BadPicture for other data, too many pixels or an unknown number format.
    """
    image = flatten(open_image(data, draft_size=2 * image_size, oddities=oddities), background)
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=_centre_square(*image.size), reducing_gap=3.0)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if is_flipped else pixels


def open_image(data: bytes, *, draft_size: int | None = None, oddities: set[str] | None = None) -> Image.Image:
    """A decoded, upright picture in mode RGB or RGBA, 8 bits a channel.

    `draft_size` lets the JPEG decoder shrink by a power of two while both sides keep that length: several times faster.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        # Pillow's message names the address of the buffer.
        message = f"{len(data)} bytes that begin with {data[:8]!r} are no picture of a kind that is read ({', '.join(FORMATS)})"
        raise BadPicture("no_picture", message) from error
    except Image.DecompressionBombError as error:
        # Pillow's own limit is twice ours; it raises before the size can be compared.
        raise BadPicture("bomb", str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture("bomb", f"{image.width} x {image.height} pixels; expected at most {MAX_PIXELS}")
    if draft_size is not None:
        image.draft(None, (draft_size, draft_size))
    image.load()
    if oddities is not None:
        oddities |= _oddities(image)
    return _to_8_bit(_upright(image))


def _oddities(image: Image.Image) -> set[str]:
    found = {"palette": image.mode in ("P", "PA"), "cmyk": image.mode == "CMYK", "16_bit": image.mode == "I" or image.mode.startswith("I;16")}
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
    # Malformed camera data raises nearly anything, struct.error and AttributeError too, and says nothing about the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA") and not (image.mode == "RGB" and "transparency" in image.info):
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would clip 16 bits at 255: nearly all white.
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadPicture("float_pixels", "the picture has floating-point pixels of unknown range; expected 8 or 16 bits")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
