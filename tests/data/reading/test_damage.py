"""A shard set with everything that goes wrong in practice is read through; each thing is counted by kind and
named."""

import itertools
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any  # settings of any type

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.batch import FAILURES, NOTES, Batch
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import Members, encode, header_offset, read_batches, write_shard, write_shards

COUNT = 30
PHOTO = Image.fromarray((np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(PHOTO, "JPEG", exif=exif)


JPEG, PNG = encode(PHOTO, "JPEG"), encode(PHOTO)
DAMAGED: dict[str, tuple[Members, str]] = {
    "0_0": ({"jpg": JPEG[: len(JPEG) // 2]}, "corrupt"),
    "0_1": ({"png": PNG[: len(PNG) // 2]}, "corrupt"),
    "0_2": ({"png": PNG[:60] + bytes(40) + PNG[100:]}, "corrupt"),
    "0_3": ({"jpg": b""}, "no_picture"),
    "0_4": ({"jpg": b"<html>404</html>"}, "no_picture"),
    "0_5": ({"png": png_of_size(20_000, 20_000)}, "bomb"),
    "0_6": ({"png": png_of_size(9_900, 9_020)}, "bomb"),
    "0_7": ({"tif": encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")}, "float_pixels"),
}
DEALT_WITH: dict[str, tuple[Members, str]] = {
    "0_10": ({"jpg": encode(PHOTO.convert("CMYK"), "JPEG")}, "cmyk"),
    "0_11": ({"png": encode(Image.fromarray(np.full((4, 4), 40_000, np.uint16)))}, "16_bit"),
    "0_12": ({"png": encode(PHOTO.convert("P"))}, "palette"),
    "0_13": ({"png": encode(PHOTO.convert("RGBA"))}, "alpha"),
    "0_14": ({"jpg": rotated()}, "rotated"),
    "0_15": ({"png": PNG, "txt": "a \N{CAT} ".encode() * 4000}, "long_caption"),
    "0_16": ({"png": PNG, "txt": b" \n"}, "caption"),
}
# The suffix does not matter: a JPEG by the name of a PNG is read.
MISNAMED = {"0_20": {"png": JPEG, "txt": b"a caption"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    replaced = {key: {"txt": b"a caption"} | members for key, (members, _) in (DAMAGED | DEALT_WITH).items()}
    replaced["0_16"] = DEALT_WITH["0_16"][0]
    paths = write_shards(tmp_path, [COUNT, 10, 10], replaced=replaced | MISNAMED)
    os.truncate(paths[1], header_offset(paths[1], "1_8.png") + 530)
    (tmp_path / "shard-empty.tar").touch()
    (tmp_path / "shard-picture.tar").write_bytes(JPEG)
    return tmp_path


def _read(folder: Path, **settings: Any) -> tuple[Reader, list[Batch]]:
    config = DataConfig(**({"max_bad_fraction": 0.5} | settings))
    reader = build_reader(config, [f"{folder}/*.tar"], model=ModelConfig(image_size=4), seed=0)
    batches = read_batches(reader, global_batch=1, micro_batch=1)
    return reader, list(itertools.islice(batches, reader.num_samples))


def test_what_is_wrong_is_counted_by_kind_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reader, batches = _read(folder)
    kinds = {
        batch.keys[0]: [failure.kind for failure in batch.failures]
        for batch in batches
        if batch.weight_B[0] == 0
    }
    assert kinds == {f"shard-000.tar/{key}": [kind] for key, (_, kind) in DAMAGED.items()}
    notes = {
        batch.keys[0]: [note.kind for note in batch.notes] + ["caption"] * len(batch.uncaptioned)
        for batch in batches
    }
    assert {key: found for key, found in notes.items() if found} == {
        f"shard-000.tar/{key}": [kind] for key, (_, kind) in DEALT_WITH.items()
    }
    assert reader.judge.counts == {
        "corrupt": 3,
        "no_picture": 2,
        "bomb": 2,
        "float_pixels": 1,
    } | dict.fromkeys((kind for _, kind in DEALT_WITH.values()), 1)
    assert reader.judge.bad_samples == len(DAMAGED)
    assert all(f"shard-000.tar/{key}" in caplog.text for key in DAMAGED | DEALT_WITH)


def test_damaged_shards_are_counted_by_kind_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader, batches = _read(folder)
    assert len(batches) == COUNT + 8 + 10
    assert reader.index_problems() == {
        "data/lost/truncated_member": 1,
        "data/lost/empty_file": 1,
        "data/lost/not_a_tar_file": 1,
    }
    for name in (
        "shard-001.tar: truncated member: 1_8.png",
        "shard-empty.tar: empty file",
        "shard-picture.tar: not a tar file",
    ):
        assert name in caplog.text


def test_the_counts_of_a_batch_are_those_of_its_kinds(folder: Path) -> None:
    _, batches = _read(folder)
    total = sum((batch.count_kinds() for batch in batches[1:]), batches[0].count_kinds())
    found = {kind: count for kind, count in zip((*FAILURES, *NOTES), total.tolist(), strict=True) if count}
    assert found == {"corrupt": 3, "no_picture": 2, "bomb": 2, "float_pixels": 1} | dict.fromkeys(
        (kind for _, kind in DEALT_WITH.values()), 1
    )


def test_a_misnamed_picture_is_read_by_its_contents(folder: Path) -> None:
    _, batches = _read(folder)
    (batch,) = [batch for batch in batches if batch.keys == ["shard-000.tar/0_20"]]
    assert batch.weight_B.item() == 1 and not batch.notes


def test_names_that_would_change_a_terminal_are_shown_cleaned_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = "../\x1b[31mred\n/etc\u202e"
    samples = {
        f"{odd}0": {"jpg": b"no picture", "txt": b"a"},
        f"{odd}1": {"png": PNG, "txt": b"\xff"},
        f"{odd}2": {"txt": b"alone"},
        f"{odd}3": {"png": PNG, "txt": b"a"},
        f"{odd}4": {"png": PNG, "\x1b]0;x": b"a"},
    }
    write_shard(tmp_path / "shard-\x1b[1m.tar", samples)
    _, batches = _read(tmp_path)
    shown = [key for batch in batches for key in batch.keys]
    shown += [text for batch in batches for bad in batch.failures for text in (bad.key, bad.reason)]
    shown += [note.text for batch in batches for note in batch.notes]
    shown += [message for record in caplog.records for message in [record.getMessage()]]
    assert any("\\x1b[31mred\\n/etc\\u202e0" in text for text in shown)
    assert "no image" in caplog.text and all(text.isprintable() for text in shown)


def test_an_interrupted_copy_is_counted_among_what_was_lost(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [COUNT])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    reader, _ = _read(tmp_path)
    assert reader.index_problems()["data/lost/zeros_to_the_end"] == 1.0
