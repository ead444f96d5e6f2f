"""Folders, tables, tar files and captions drawn by chance: every picture is in a shard or named with a
reason."""

import csv
import io
import json
import os
import random
import tarfile
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale.prepare.pairs import stem_of
from diffmoe_scale.prepare.prepared import Prepared
from diffmoe_scale.prepare.walk import PICTURE_SUFFIXES, TEXT_SUFFIXES, suffix_of
from diffmoe_scale.unicode import clean_name
from tests.data.samples import encode
from tests.prepare.folders import prepare, read_samples

CASES = 200
PICTURES = [
    encode(Image.new("RGB", (5, 4), (40 * n, 0, 0)), kind) for n, kind in enumerate(("PNG", "JPEG", "GIF"))
]
BROKEN = [b"", b"no picture", PICTURES[0][:40]]
STEMS = ["a", "A", "b", "v1.0", "é", unicodedata.normalize("NFD", "é"), "É", ".hidden", "._a", "x y", "\x1bz"]
SUFFIXES = [
    "png",
    "PNG",
    "jpg",
    "jpeg",
    "gif",
    "txt",
    "TXT",
    "json",
    "png.txt",
    "JPG.txt",
    "heic",
    "csv",
    "parquet",
]
FOLDERS = ["", "one/", "one/Two/", ".cache/", "é/"]
TEXTS = [
    b"red",
    b"",
    b" \n",
    b"caf\xe9",
    "\ufeffgrün".encode(),
    "wide".encode("utf-16"),
    b"nul\0",
    b"[1]",
    b"{",
]
RECORDS = [
    b'{"caption": "red"}',
    b'{"caption": ["a", "\\ud83d"]}',
    b"[]",
    b"{",
    b"[" * 3000,
    b'{"caption": 5}',
    b"",
]
pytestmark = pytest.mark.slow


def check(prepared: Prepared, output: Path, names: list[str]) -> None:
    """All pictures among the names are in a shard, or named; so are texts that belong to none; counts add
    up."""
    samples = [
        json.loads(sample["json"])["source_file"]
        for split in ("train", "validation")
        for sample in read_samples(output, f"{split}-*").values()
    ]
    assert len(samples) == prepared.counts["train"] + prepared.counts["validation"]
    assert prepared.images == len(samples) + prepared.left_out.counts.total()
    losses = (prepared.left_out, prepared.unused, prepared.notes)
    named = "\n".join(name for one in losses for several in one.names.values() for name in several)
    for name in names:
        if suffix_of(name) in PICTURE_SUFFIXES:
            assert clean_name(name) in samples or clean_name(name) in named, name
        elif suffix_of(name) in TEXT_SUFFIXES:
            # Of a picture that is there, or was left out by name; or named itself.
            is_used = any(_loose(name) == _loose(sample) for sample in samples)
            assert is_used or clean_name(name) in named or _loose(name) in _normal(named), name


def _loose(name: str) -> str:
    """Equal for a text and its picture."""
    stem = stem_of(name)
    return _normal(clean_name(stem_of(stem) if suffix_of(stem) in PICTURE_SUFFIXES else stem))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def draw_files(draw: random.Random) -> dict[str, bytes]:
    """Contents by name; one picture with a caption is always there."""
    files = {"sure.png": PICTURES[0], "sure.txt": b"sure"}
    for _ in range(draw.randrange(1, 14)):
        name = draw.choice(FOLDERS) + draw.choice(STEMS) + "." + draw.choice(SUFFIXES)
        kind = suffix_of(name)
        choices = TEXTS if kind == "txt" else RECORDS if kind == "json" else PICTURES * 2 + BROKEN
        files[name] = draw.choice(choices)
    return files


def test_every_file_of_a_folder_is_paired_or_named(tmp_path: Path) -> None:
    for case in range(CASES):
        draw = random.Random(case)
        root = tmp_path / str(case) / "photos"
        names = draw_files(draw)
        for name, data in names.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        if draw.random() < 0.3:
            os.symlink(draw.choice(["nowhere.png", ".", "one", "..", "link.png"]), root / "link.png")
            names["link.png"] = b""
        options = {"validation": draw.choice([0.0, 0.5]), "resize": draw.choice([0, 2])}
        output = tmp_path / str(case) / "out"
        try:
            prepared = prepare(root, output, **options)
        except ValueError as error:
            # By chance one of the splits is empty.
            assert "--validation" in str(error) or "left for training" in str(error)
            continue
        visible = [name for name in names if not any(part.startswith(".") for part in name.split("/")[:-1])]
        check(prepared, output, visible)
        assert not prepare(root, output, **options).is_new


def test_every_member_of_a_tar_is_paired_or_named(tmp_path: Path) -> None:
    for case in range(CASES):
        draw = random.Random(case)
        members = list(draw_files(draw).items())
        if draw.random() < 0.5:
            members += draw.sample(members, k=min(3, len(members)))
        draw.shuffle(members)
        path = tmp_path / f"{case}.tar"
        with tarfile.open(path, "w", format=draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as archive:
            for name, data in members:
                header = tarfile.TarInfo(draw.choice(["", "./"]) + name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
        check(prepare(path, tmp_path / f"out{case}"), tmp_path / f"out{case}", [name for name, _ in members])


def test_damaged_tars_end_in_a_set_or_a_sentence(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for number in range(4):
            for suffix, data in (("png", PICTURES[0]), ("txt", b"red")):
                header = tarfile.TarInfo(f"{number}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    for case in range(CASES):
        draw, damaged = random.Random(case), bytearray(whole.getvalue())
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(8192)] = draw.randrange(256)
        path = tmp_path / f"{case}.tar"
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            prepared = prepare(path, tmp_path / f"out{case}")
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        losses = prepared.left_out.counts.total() + prepared.unused.counts.total()
        assert prepared.counts["train"] == 4 or losses


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_every_row_of_a_table_is_kept_or_named(tmp_path: Path, kind: str) -> None:
    signs = ["a", '"', "'", ",", ";", " b", "é", "\\"] + {
        "csv": ["\n", "\t"],
        "tsv": [],
        "jsonl": ["\n", "\t"],
    }[kind]
    (tmp_path / "p.png").write_bytes(PICTURES[0])
    for case in range(CASES):
        draw = random.Random(case)
        captions = [
            "".join(draw.choices(signs, k=draw.randrange(1, 6))) + "." for _ in range(draw.randrange(1, 5))
        ]
        rows = [("p.png", caption) for caption in captions]
        table = tmp_path / f"{case}.{kind}"
        with table.open("w", encoding=draw.choice(["utf-8", "utf-8-sig"]), newline="") as file:
            if kind == "csv":
                csv.writer(file).writerows([("image", "caption"), *rows])
            elif kind == "tsv":
                file.write("image\tcaption\n" + "".join(f"{name}\t{caption}\n" for name, caption in rows))
            else:
                file.writelines(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows)
        prepared = prepare(table, tmp_path / f"out{case}")
        found = [sample["txt"].decode() for sample in read_samples(tmp_path / f"out{case}").values()]
        assert found == [caption.strip() for caption in captions] and prepared.images == len(rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_damaged_tables_end_in_a_set_or_a_sentence(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "p.png").write_bytes(PICTURES[0])
    text = {
        "csv": b'image,caption\np.png,"a, ""b"""\np.png,c\n',
        "tsv": b'image\tcaption\np.png\t"a\np.png\tc\n',
        "jsonl": b'{"image": "p.png", "caption": "a"}\n{"image": "p.png", "caption": ["b", "c"]}\n',
    }
    table = pyarrow.table({"jpg": [PICTURES[0]] * 4, "caption": ["a", "b", "c", "d"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    whole = text.get(kind) or (tmp_path / "t.parquet").read_bytes()
    for case in range(CASES):
        draw, data = random.Random(case), bytearray(whole)
        for _ in range(draw.randrange(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path = tmp_path / f"{case}.{kind}"
        path.write_bytes(data)
        try:
            prepared = prepare(path, tmp_path / f"out{case}")
        except ValueError as error:
            assert "\n" not in str(error), str(error)
            continue
        assert prepared.images == prepared.counts["train"] + prepared.left_out.counts.total()


def test_captions_of_any_bytes(tmp_path: Path) -> None:
    for case in range(CASES):
        draw = random.Random(case)
        root = tmp_path / str(case)
        root.mkdir()
        names = ["sure.png"]
        (root / "sure.txt").write_bytes(b"sure")
        for number in range(3):
            names.append(f"{number}.png")
            for kind in TEXT_SUFFIXES:
                (root / f"{number}.{kind}").write_bytes(draw.randbytes(draw.randrange(20)))
        for name in names:
            (root / name).write_bytes(PICTURES[0])
        prepared = prepare(root, tmp_path / f"out{case}")
        check(prepared, tmp_path / f"out{case}", names)
        for sample in read_samples(tmp_path / f"out{case}").values():
            assert "\0" not in sample["txt"].decode()
