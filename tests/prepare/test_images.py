import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffmoe_scale.prepare.images import ANIMATION, PROFILE, SUFFIX_BY_FORMAT, suffix_by_format, unseen_parts
from tests.data.samples import encode
from tests.prepare.folders import prepare, read_samples

RED = Image.new("RGB", (8, 6), "red")
KINDS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"]


def multi_picture() -> bytes:
    """A JPEG of two pictures, as telephones write them."""
    buffer = io.BytesIO()
    RED.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_suffix_is_that_of_the_format_whatever_the_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encode(RED, kind))
    (tmp_path / "photos" / "a.txt").write_text("x")
    prepare(tmp_path / "photos", tmp_path / "out")
    assert SUFFIX_BY_FORMAT[kind] in read_samples(tmp_path / "out")["a"]


def test_a_multi_picture_file_is_a_jpeg(tmp_path: Path) -> None:
    assert suffix_by_format(multi_picture()) == "jpg" and unseen_parts(multi_picture()) == []
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.mpo").write_bytes(multi_picture())
    (tmp_path / "photos" / "a.txt").write_text("x")
    prepare(tmp_path / "photos", tmp_path / "out", resize=3)
    assert "jpg" in read_samples(tmp_path / "out")["a"]


def test_animations_and_colour_profiles_are_noted(tmp_path: Path) -> None:
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    blue = Image.new("RGB", (8, 6), "blue")
    folder = tmp_path / "photos"
    folder.mkdir()
    RED.save(folder / "moving.gif", save_all=True, append_images=[blue])
    RED.save(folder / "moving.webp", save_all=True, append_images=[blue])
    RED.save(folder / "pages.tif", save_all=True, append_images=[blue])
    RED.save(folder / "wide.png", icc_profile=other)
    RED.save(folder / "web.png", icc_profile=srgb)
    (folder / "web.txt").write_text("x")
    notes = prepare(folder, tmp_path / "out").notes.names
    assert notes[ANIMATION] == ["moving.gif", "moving.webp", "pages.tif"] and notes[PROFILE] == ["wide.png"]


def test_a_smaller_copy_keeps_a_profile_of_its_colours_alone(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    folder = tmp_path / "photos"
    folder.mkdir()
    RED.save(folder / "a.png", icc_profile=profile)
    RED.convert("CMYK").save(folder / "b.jpg", icc_profile=profile[:16] + b"CMYK" + profile[20:])
    (folder / "a.txt").write_text("x")
    prepare(folder, tmp_path / "out", resize=3)
    samples = read_samples(tmp_path / "out")
    assert Image.open(io.BytesIO(samples["a"]["png"])).info["icc_profile"] == profile
    assert "icc_profile" not in Image.open(io.BytesIO(samples["b"]["jpg"])).info


def test_a_picture_on_its_side_is_resized_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    data = encode(Image.new("RGB", (80, 40)), "JPEG", exif=exif.tobytes())
    (tmp_path / "images" / "a.jpg").write_bytes(data)
    (tmp_path / "images" / "a.txt").write_text("x")
    prepare(tmp_path / "images", tmp_path / "out", resize=20)
    image = Image.open(io.BytesIO(read_samples(tmp_path / "out")["a"]["jpg"]))
    assert image.size == (20, 40) and image.getexif().get(0x0112, 1) == 1


def test_sides_never_shrink_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((3, 900, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("x")
    prepare(tmp_path / "images", tmp_path / "out", resize=1)
    assert Image.open(io.BytesIO(read_samples(tmp_path / "out")["a"]["png"])).size == (300, 1)
