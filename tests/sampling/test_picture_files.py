"""Files of single pictures: pixels, metadata, names."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffmoe_scale.sampling.picture_files import (
    FORMATS,
    PictureFormat,
    encode_picture,
    file_stem,
    make_free_folder,
    read_picture_metadata,
    write_free,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
METADATA: dict[str, str | int] = {
    "prompt": 'a "red" <circle> & \N{CJK UNIFIED IDEOGRAPH-65E5}\n\N{GRINNING FACE}',
    "negative_prompt": "",
    "seed": 2**32 - 1,
    "settings": '{"steps": 20}',
}


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_say_what_they_were_made_of(tmp_path: Path, kind: PictureFormat) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(encode_picture(PIXELS, kind, METADATA))
    found = read_picture_metadata(path)
    assert {name: str(value) for name, value in found.items()} == {
        name: str(value) for name, value in METADATA.items()
    }
    with Image.open(path) as picture:
        assert picture.format == kind.upper() and picture.size == (24, 16)
        if kind == "png":
            assert np.array_equal(np.asarray(picture), PIXELS)
        else:
            assert b"a &quot;" not in picture.info["xmp"] and b"&lt;circle&gt; &amp;" in picture.info["xmp"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prompt", ["x" * 1_000_000, "\N{GRINNING FACE}" * 100_000, "a\0b\x1b\x07\udcff", ""])
def test_any_prompt_can_be_written_and_read(tmp_path: Path, kind: PictureFormat, prompt: str) -> None:
    path = tmp_path / "picture"
    made_of: dict[str, str | int] = {"prompt": prompt, "negative_prompt": prompt, "seed": 0}
    path.write_bytes(encode_picture(PIXELS, kind, made_of))
    found = str(read_picture_metadata(path)["prompt"])
    assert len(found) <= 10_000 and found[:1] == prompt[:1]
    assert len(prompt) <= 10_000 or found.endswith("\N{HORIZONTAL ELLIPSIS}")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_picture_is_one_that_cannot_be_read(tmp_path: Path, kind: PictureFormat) -> None:
    path, chance = tmp_path / "picture", random.Random(0)
    data = encode_picture(PIXELS, kind, {"prompt": "a red circle", "seed": 1})
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(OSError):
            read_picture_metadata(path)


def test_pictures_of_others_have_no_metadata(tmp_path: Path) -> None:
    for kind, exif in (
        ("PNG", None),
        ("JPEG", None),
        ("JPEG", b"ASCII\0\0\0no JSON"),
        ("JPEG", b"ASCII\0\0\0[1]"),
    ):
        own = Image.Exif()
        if exif:
            own.get_ifd(0x8769)[0x9286] = exif
        buffer = BytesIO()
        Image.fromarray(PIXELS).save(buffer, kind, exif=own.tobytes())
        (tmp_path / "other").write_bytes(buffer.getvalue())
        assert "prompt" not in read_picture_metadata(tmp_path / "other")


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("a red circle", "00007-a-red-circle"),
        ("../../etc/passwd", "00007-etc-passwd"),
        ("\N{CJK UNIFIED IDEOGRAPH-65E5}", "00007"),
        ("Cr\N{LATIN SMALL LETTER E WITH GRAVE}me \x1b[31m\n", "00007-creme-31m"),
        ("CON", "00007-con"),
        ("x" * 500, "00007-" + "x" * 60),
        (3, "00007-3"),
    ],
)
def test_names_of_files_are_safe_whatever_the_prompt(prompt: str | int, stem: str) -> None:
    assert file_stem(7, prompt) == stem


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_names_hold_small_letters_digits_and_dashes_alone(prompt: str) -> None:
    stem = file_stem(0, prompt)
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(stem) < 70


def test_what_is_there_is_never_written_over_also_by_many_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"old")
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda n: write_free(tmp_path, "x", ".png", str(n).encode()), range(40)))
    assert len(set(paths)) == 40 and (tmp_path / "x.png").read_bytes() == b"old"
    assert [path.read_bytes() for path in paths] == [str(number).encode() for number in range(40)]


def test_a_free_folder_has_no_grid_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (tmp_path / "x-2").mkdir()
    assert make_free_folder(tmp_path / "x", beside=".png") == tmp_path / "x-3"
    assert make_free_folder(tmp_path / "new" / "x", beside=".png").is_dir()


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_free(tmp_path, "x", ".png", "text")  # type: ignore[arg-type]  # what cannot be written
    assert list(tmp_path.iterdir()) == []
