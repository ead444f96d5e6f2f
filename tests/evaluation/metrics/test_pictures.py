"""Pictures on disk: every wrong file is a sentence."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.evaluation.metrics.pictures import open_pictures

PICTURES = np.random.default_rng(0).integers(0, 256, (11, 8, 6, 3), dtype=np.uint8)


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the options for arrays
    return path


def all_pictures(path: Path, **settings: int) -> np.ndarray:
    parts = list(open_pictures(path).batches(4, **settings))
    return np.concatenate([part.pictures_BHWC for part in parts])


@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_archive_is_read_batch_by_batch(tmp_path, is_compressed):
    path = tmp_path / "samples.npz"
    save = np.savez_compressed if is_compressed else np.savez
    save(path, arr_0=PICTURES, arr_1=np.arange(11))
    source = open_pictures(path)
    assert (source.count, source.size) == (11, (8, 6))
    parts = list(source.batches(4))
    assert [part.places for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    np.testing.assert_array_equal(np.concatenate([part.pictures_BHWC for part in parts]), PICTURES)
    assert parts[0].captions is None


def test_ranks_share_the_batches_out(tmp_path):
    path = write(tmp_path / "samples.npz", arr_0=PICTURES)
    places = [[part.places for part in open_pictures(path).batches(4, rank=rank, ranks=2)] for rank in (0, 1)]
    assert places == [[[0, 1, 2, 3], [8, 9, 10]], [[4, 5, 6, 7]]]
    np.testing.assert_array_equal(all_pictures(path, rank=1, ranks=2), PICTURES[4:8])


def test_captions_come_from_the_lines_that_sample_wrote(tmp_path):
    path = write(tmp_path / "samples.npz", arr_0=PICTURES)
    lines = [{"seed": 1}, *({"prompt": f"picture {number}"} for number in range(11))]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(line) for line in lines))
    parts = list(open_pictures(path).batches(4))
    assert parts[2].captions == ["picture 8", "picture 9", "picture 10"]


def test_damaged_captions_are_a_sentence(tmp_path):
    for number, text in enumerate(("{}\nnot json", "{}\n[]", '{}\n{"seed": 1}')):
        path = write(tmp_path / f"{number}.npz", arr_0=PICTURES[:1])
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("metadata.jsonl", text)
        with pytest.raises(ValueError, match=rf"{number}\.npz: metadata\.jsonl is damaged"):
            list(open_pictures(path).batches(4))


def test_an_encrypted_or_strangely_compressed_archive_is_refused(tmp_path):
    path = write(tmp_path / "samples.npz", arr_0=PICTURES)
    whole = path.read_bytes()
    central = whole.index(b"PK\x01\x02")
    for place, value in ((8, 1), (10, 99)):  # the flag of encryption, the method of compression
        data = bytearray(whole)
        data[central + place] = value
        data[place - 2] = value  # the same in the member's own header
        path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=r"samples\.npz is no \.npz archive, or is damaged"):
            open_pictures(path)


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"images": PICTURES}, r"holds .images.; expected pictures as arr_0, uint8 \[N, H, W, 3\]"),
        ({}, "holds .nothing.; expected pictures as arr_0"),
        (
            {"arr_0": PICTURES.transpose(0, 3, 1, 2).copy()},
            r"arr_0 is uint8 \[11, 3, 8, 6\], colours first; expected uint8 \[N, H, W, 3\]",
        ),
        ({"arr_0": PICTURES / 255}, r"arr_0 is float64 \[11, 8, 6, 3\]; expected uint8 \[N, H, W, 3\]"),
        ({"arr_0": PICTURES[..., 0]}, r"arr_0 is uint8 \[11, 8, 6\]; expected uint8"),
        ({"arr_0": PICTURES[:0]}, r"arr_0 is uint8 \[0, 8, 6, 3\]; expected uint8"),
        ({"arr_0": np.asfortranarray(PICTURES)}, "in Fortran's order; write it from np.ascontiguousarray"),
        ({"arr_0": np.array([{"code": os.system}, 1])}, r"arr_0 is object \[2\]; expected uint8"),
    ],
)
def test_an_archive_of_something_else_is_refused(tmp_path, arrays, error):
    path = write(tmp_path / "samples.npz", **arrays)
    with pytest.raises(ValueError, match=f"samples.npz.*{error}"):
        open_pictures(path)


def test_a_damaged_archive_is_refused(tmp_path):
    path = write(tmp_path / "samples.npz", arr_0=PICTURES)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"samples\.npz is no \.npz archive, or is damaged or cut off"):
        open_pictures(path)
    path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(ValueError, match=r"samples\.npz.*Bad CRC-32"):
        all_pictures(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (9, 8, 6, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"short")
    with pytest.raises(ValueError, match=r"samples\.npz is cut off within arr_0"):
        all_pictures(path)
    with pytest.raises(ValueError, match=r"absent\.npz does not exist; expected a folder of pictures or a"):
        open_pictures(tmp_path / "absent.npz")


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for number in reversed(range(11)):
        Image.fromarray(PICTURES[number]).save(tmp_path / f"{number:06d}.png")
    (tmp_path / "grid.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "._000000.png").write_bytes(b"of another system")
    source = open_pictures(tmp_path, read_caption=lambda file: file.stem)
    assert (source.count, source.size) == (11, (8, 6))
    np.testing.assert_array_equal(all_pictures(tmp_path), PICTURES)
    assert next(source.batches(2)).captions == ["000000", "000001"]


def test_the_fingerprint_is_of_content_and_order(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(PICTURES[number]).save(tmp_path / name / f"{number}.png")
    first = open_pictures(tmp_path / "first").fingerprint()
    assert open_pictures(tmp_path / "second").fingerprint() == first
    (tmp_path / "second" / "2.png").rename(tmp_path / "second" / "3.png")
    assert open_pictures(tmp_path / "second").fingerprint() != first


def test_names_that_are_no_text_have_a_fingerprint_too(tmp_path):
    fingerprints = set()
    for name in (b"a.png", b"\xff.png", b"\xfe.png"):
        folder = tmp_path / name.hex()
        folder.mkdir()
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.fromarray(PICTURES[0]).save(file, "PNG")
        fingerprints.add(open_pictures(folder).fingerprint())
    assert len(fingerprints) == 3


def test_wrong_files_of_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures \(\.bmp, \.gif"):
        open_pictures(tmp_path)
    Image.fromarray(PICTURES[0]).save(tmp_path / "0.png")
    Image.fromarray(PICTURES[1][:4]).save(tmp_path / "1.png")
    with pytest.raises(
        ValueError, match=r"1\.png is 4 x 6 pixels, but 0\.png 8 x 6; expected pictures of one"
    ):
        all_pictures(tmp_path)
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(
        ValueError, match=r"1\.png is no picture that is read: .*header is damaged or cut off"
    ):
        all_pictures(tmp_path)
