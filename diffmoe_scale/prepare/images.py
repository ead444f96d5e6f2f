"""Bytes of pictures: what they are, what training will not see of them, and smaller copies."""

import contextlib
import io

from PIL import Image, ImageCms

from diffmoe_scale.data.reading.pictures import identify

SUFFIX_BY_FORMAT = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
}
"""Member of a sample by the format that its picture was decoded from; an MPO is a JPEG with more behind
it."""
PHOTOGRAPHS = ("jpg", "webp", "jp2")
ANIMATION = "animation or several pages: training sees the first picture"
PROFILE = "colour profile other than sRGB: training reads the numbers as sRGB"


def suffix_by_format(data: bytes) -> str:
    """Raises: ValueError for a format that is none of SUFFIX_BY_FORMAT."""
    kind = str(identify(data).format)
    if kind not in SUFFIX_BY_FORMAT:
        raise ValueError(f"a picture of the format {kind}; expected {', '.join(SUFFIX_BY_FORMAT)}")
    return SUFFIX_BY_FORMAT[kind]


def unseen_parts(data: bytes) -> list[str]:
    """What a good picture holds that training passes over: ANIMATION, PROFILE."""
    found = []
    # Whatever is wrong with further frames or a profile, the picture itself was decoded.
    with contextlib.suppress(Exception):
        image = identify(data)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            found.append(ANIMATION)
        if not _is_srgb(image.info.get("icc_profile")):
            found.append(PROFILE)
    return found


def _is_srgb(profile: bytes | None) -> bool:
    """Whether a picture has the colours of the web: by its profile's name, or because it has none."""
    if not profile:
        return True
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError):
        return False
    return "srgb" in name.lower()


def _rgb_profile(image: Image.Image) -> bytes | None:
    """The colour profile of a picture; None where it is of other numbers than red, green and blue, from which
    the picture was converted."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
        return None
    return profile


def shrink(image: Image.Image, side: int, *, is_photograph: bool) -> tuple[str, bytes]:
    """Suffix and bytes of a picture with `side` pixels on its shorter side: JPEG where that loses little,
    else PNG. A colour profile is kept."""
    width, height = (max(1, round(length * side / min(image.size))) for length in image.size)
    suffix, kind = ("jpg", "JPEG") if is_photograph and image.mode == "RGB" else ("png", "PNG")
    buffer = io.BytesIO()
    small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.save(buffer, kind, quality=95, icc_profile=_rgb_profile(image))
    return suffix, buffer.getvalue()
