import csv
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.reader import build_reader
from tests.data.samples import encode, read_batches
from tools import prepare_shards

ROOT = Path(__file__).parents[2]
Samples = dict[str, dict[str, bytes]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three captioned images."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a.png", "deep/er/b.jpg", "deep/c.d.webp")):
        _add(folder, name, caption=f"caption {number}", color=(50 * number, 0, 0))
    return folder


def _add(
    folder: Path,
    name: str,
    *,
    caption: str = "",
    color: tuple[int, int, int] = (1, 2, 3),
    size: tuple[int, int] = (6, 4),
) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        encode(Image.new("RGB", size, color), Image.registered_extensions()[path.suffix.lower()])
    )
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


def _prepare(source: Path, output: Path, *options: str) -> int:
    return prepare_shards.main(["--input", str(source), "--output", str(output), *options])


def _read(output: Path, shards: str = "train-*") -> Samples:
    """Samples by key, from plain tar files."""
    samples: Samples = {}
    for path in sorted(output.glob(f"{shards}.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None and suffix not in samples.setdefault(key, {})
                samples[key][suffix] = file.read()
    return samples


def _table(path: Path, rows: Sequence[dict[str, object]], *, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr().err.strip().splitlines()
    assert len(captured) == 1 and captured[0].startswith("error: ")
    return captured[0]


def test_a_folder_becomes_shards_with_the_original_bytes(images: Path, tmp_path: Path) -> None:
    assert _prepare(images, tmp_path / "out") == 0
    samples = _read(tmp_path / "out")
    originals = {
        "a": ("png", "a.png"),
        "deep_er_b": ("jpg", "deep/er/b.jpg"),
        "deep_c_d": ("webp", "deep/c.d.webp"),
    }
    assert samples.keys() == originals.keys()
    for number, (key, (suffix, name)) in enumerate(originals.items()):
        assert samples[key].keys() == {suffix, "txt", "json"}
        assert (
            samples[key][suffix] == (images / name).read_bytes()
            and samples[key]["txt"].decode() == f"caption {number}"
        )
        assert json.loads(samples[key]["json"]) == {
            "caption": f"caption {number}",
            "original_width": 6,
            "original_height": 4,
            "source_file": name,
        }


def test_training_reads_what_was_written(images: Path, tmp_path: Path) -> None:
    _prepare(images, tmp_path / "out", "--samples-per-shard", "2")
    reader = build_reader(
        DataConfig(caption_dropout=0.0),
        [f"{tmp_path}/out/train-*.tar"],
        model=ModelConfig(image_size=4),
        seed=0,
    )
    batch = next(read_batches(reader, global_batch=3, micro_batch=3))
    assert (
        len(reader.catalog.paths) == 2
        and reader.catalog.problems == {}
        and batch.weight_B.tolist() == [1, 1, 1]
    )
    assert set(batch.captions) == {"caption 0", "caption 1", "caption 2"}


def test_equal_input_gives_equal_bytes(images: Path, tmp_path: Path) -> None:
    _prepare(images, tmp_path / "1")
    _prepare(images, tmp_path / "2")
    assert (tmp_path / "1" / "train-000000.tar").read_bytes() == (
        tmp_path / "2" / "train-000000.tar"
    ).read_bytes()


def test_shards_are_as_long_as_asked_for(tmp_path: Path) -> None:
    for number in range(7):
        _add(tmp_path / "images", f"{number}.png", caption="x")
    _prepare(tmp_path / "images", tmp_path / "out", "--samples-per-shard", "3")
    assert [len(_read(tmp_path / "out", f"train-{shard:06d}")) for shard in range(3)] == [3, 3, 1]


def test_broken_images_are_left_out_and_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    (images / "empty.jpg").touch()
    whole = encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG"
    )
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    assert _prepare(images, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "3 training and 0 validation samples" in printed and "left out 3 of 6 images" in printed
    assert (
        all(f"'{name}'" in printed for name in ("broken.png", "empty.jpg", "half.jpg"))
        and len(_read(tmp_path / "out")) == 3
    )
    manifest = json.loads((tmp_path / "out" / prepare_shards.MANIFEST).read_text())
    assert (
        manifest["samples"] == {"train": 3, "validation": 0, "uncaptioned": 0}
        and len(manifest["skipped"]) == 3
    )


def test_of_many_broken_images_some_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(15):
        (images / f"broken{number:02d}.png").touch()
    _prepare(images, tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("'broken") == prepare_shards.NAMED and "and 5 more" in printed


def test_an_image_without_a_caption_is_kept_with_an_empty_one(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _add(images, "plain.png")
    assert _prepare(images, tmp_path / "out") == 0
    assert _read(tmp_path / "out")["plain"]["txt"] == b"" and "1 without a caption" in capsys.readouterr().out


def test_captions_can_be_required(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _add(images, "plain.png")
    assert _prepare(images, tmp_path / "out", "--require-captions") == 0
    assert "plain" not in _read(tmp_path / "out") and "'plain.png': no caption" in capsys.readouterr().out


def test_captions_and_what_else_is_known_come_from_json(images: Path, tmp_path: Path) -> None:
    (images / "a.txt").unlink()
    (images / "a.json").write_text('{"caption": " from json ", "license": "CC0"}')
    (images / "deep" / "c.d.txt").unlink()
    (images / "deep" / "c.d.json").write_text('{"caption": ["one", "two"]}')
    _prepare(images, tmp_path / "out")
    samples = _read(tmp_path / "out")
    assert samples["a"]["txt"] == b"from json" and json.loads(samples["a"]["json"])["license"] == "CC0"
    # Training draws one of several.
    assert "txt" not in samples["deep_c_d"] and json.loads(samples["deep_c_d"]["json"])["caption"] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("damage", [b"{broken", b"[1]", b"\xff\xfe\xff"])
def test_an_unreadable_caption_costs_its_image(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    (images / "a.json").write_bytes(damage)
    assert _prepare(images, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert (
        "left out 1 of 3" in printed
        and "its .json is no JSON object in UTF-8" in printed
        and "a" not in _read(tmp_path / "out")
    )


def test_unicode_names_and_captions_survive(images: Path, tmp_path: Path) -> None:
    _add(images, "grüße/猫 😀.png", caption="ein grüner Kreis")
    _prepare(images, tmp_path / "out")
    assert _read(tmp_path / "out")["grüße_猫_😀"]["txt"].decode() == "ein grüner Kreis"


def test_names_that_give_one_key_are_told_apart(images: Path, tmp_path: Path) -> None:
    for name in ("deep_c.d.png", "a.jpg", "a.b.png", "a_b.png"):
        _add(images, name, caption=name)
    _prepare(images, tmp_path / "out")
    assert set(_read(tmp_path / "out")) == {"a", "a-2", "a_b", "a_b-2", "deep_c_d", "deep_c_d-2", "deep_er_b"}


@settings(deadline=None)
@given(names=st.lists(st.text(alphabet="ab./_- 2ü", min_size=1, max_size=6), max_size=20))
def test_keys_are_unique_and_without_dots(names: list[str]) -> None:
    keys: set[str] = set()
    made = [prepare_shards.unique_key(prepare_shards.key_stem(name), keys) for name in names]
    assert len(set(made)) == len(names) and all(key and "." not in key and "/" not in key for key in made)


def test_names_that_are_no_utf8_get_a_key_that_is() -> None:
    assert prepare_shards.key_stem("caf\udce9.png") == "caf?"


def test_hidden_files_and_other_kinds_are_left_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _add(images, ".cache/x.png")
    (images / "._a.png").write_bytes(b"resource fork")
    (images / "photo.heic").touch()
    assert _prepare(images, tmp_path / "out") == 0
    assert len(_read(tmp_path / "out")) == 3 and "{'.heic': 1}" in capsys.readouterr().out


def test_validation_is_a_stable_share_by_name(tmp_path: Path) -> None:
    for number in range(200):
        _add(tmp_path / "images", f"{number}.png", caption="x")
    _prepare(tmp_path / "images", tmp_path / "all", "--validation", "0.25")
    train, validation = set(_read(tmp_path / "all")), set(_read(tmp_path / "all", "validation-*"))
    # Binomial: 50 +- 6; five standard deviations.
    assert abs(len(validation) - 50) < 31 and not train & validation and len(train | validation) == 200
    for number in range(0, 200, 2):
        (tmp_path / "images" / f"{number}.png").unlink()
    _prepare(tmp_path / "images", tmp_path / "half", "--validation", "0.25")
    assert (
        set(_read(tmp_path / "half")) <= train and set(_read(tmp_path / "half", "validation-*")) <= validation
    )


def test_rows_with_the_same_image_fall_into_one_split(tmp_path: Path) -> None:
    rows = [
        {"image": _add(tmp_path, f"{number}.png").name, "caption": f"{number} {view}"}
        for number in range(40)
        for view in range(3)
    ]
    _prepare(_table(tmp_path / "data.csv", rows), tmp_path / "out", "--validation", "0.5")
    splits = [
        {sample["txt"].split()[0] for sample in _read(tmp_path / "out", f"{split}-*").values()}
        for split in ("train", "validation")
    ]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 40


@pytest.mark.parametrize(
    ("image_column", "caption_column"), [("image", "caption"), ("file_name", "text"), ("filepath", "title")]
)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_a_table_with_usual_columns_is_read(
    images: Path, tmp_path: Path, kind: str, image_column: str, caption_column: str
) -> None:
    rows = [
        {image_column: "a.png", caption_column: 'red, "quoted"', "score": "1"},
        {image_column: "deep/er/b.jpg", caption_column: "grün", "score": "2"},
    ]
    table = images / f"data{kind}"
    if kind == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        _table(table, rows, delimiter="," if kind == ".csv" else "\t")
    assert _prepare(table, tmp_path / "out") == 0
    samples = _read(tmp_path / "out")
    assert {key: sample["txt"].decode() for key, sample in samples.items()} == {
        "a": 'red, "quoted"',
        "deep_er_b": "grün",
    }
    assert (
        samples["a"]["png"] == (images / "a.png").read_bytes()
        and json.loads(samples["a"]["json"])["score"] == "1"
    )


def test_columns_can_be_named(images: Path, tmp_path: Path) -> None:
    table = _table(images / "data.csv", [{"id": 1, "picture": "a.png", "caption": "wrong", "alt": "right"}])
    assert _prepare(table, tmp_path / "out", "--image-column", "picture", "--caption-column", "alt") == 0
    assert _read(tmp_path / "out")["a"]["txt"] == b"right"


def test_a_table_from_a_spreadsheet_with_a_byte_order_mark_is_read(images: Path, tmp_path: Path) -> None:
    (images / "data.csv").write_bytes("\ufeffimage,caption\r\na.png,grün\r\n".encode())
    assert (
        _prepare(images / "data.csv", tmp_path / "out") == 0
        and _read(tmp_path / "out")["a"]["txt"].decode() == "grün"
    )


def test_rows_without_a_usable_image_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"image": name, "caption": "x"}
        for name in ("a.png", "missing.png", "", "a", "https://example.org/a.svg")
    ]
    assert _prepare(_table(images / "data.csv", rows), tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "left out 4 of 5" in printed and all(
        f"{name!r}: " in printed for name in ("missing.png", "row 3", "a", "https://example.org/a.svg")
    )


def test_resized_images_have_that_shorter_side_and_small_ones_keep_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("photo.jpg", "drawing.png", "wide.bmp"):
        _add(folder, name, caption="x", size=(90, 30), color=(200, 30, 60))
    small = _add(folder, "small.jpg", caption="x", size=(90, 10))
    (folder / "clear.webp").write_bytes(encode(Image.new("RGBA", (30, 60), (9, 8, 7, 0)), "WEBP"))
    _prepare(folder, tmp_path / "out", "--resize", "10")
    samples = _read(tmp_path / "out")
    pictures = {
        f"{key}.{suffix}": data
        for key, members in samples.items()
        for suffix, data in members.items()
        if suffix not in ("txt", "json")
    }
    opened = {name: Image.open(io.BytesIO(data)) for name, data in pictures.items()}
    assert {name: image.size for name, image in opened.items()} == {
        "photo.jpg": (30, 10),
        "drawing.png": (30, 10),
        "wide.png": (30, 10),
        "small.jpg": (90, 10),
        "clear.png": (10, 20),
    }
    assert pictures["small.jpg"] == small.read_bytes() and opened["clear.png"].mode == "RGBA"
    assert (np.asarray(opened["drawing.png"]) == (200, 30, 60)).all() and json.loads(
        samples["photo"]["json"]
    )["original_width"] == 90


def test_a_picture_on_its_side_is_resized_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(
        encode(Image.new("RGB", (80, 40)), "JPEG", exif=exif.tobytes())
    )
    (tmp_path / "images" / "a.txt").write_text("x")
    _prepare(tmp_path / "images", tmp_path / "out", "--resize", "20")
    image = Image.open(io.BytesIO(_read(tmp_path / "out")["a"]["jpg"]))
    assert image.size == (20, 40) and image.getexif().get(0x0112, 1) == 1


def test_a_folder_name_with_signs_of_a_pattern_is_only_a_name(images: Path, tmp_path: Path) -> None:
    assert _prepare(images, tmp_path / "50%d {0}: [x]") == 0
    assert (tmp_path / "50%d {0}: [x]" / "train-000000.tar").exists()


def test_shards_are_replaced_only_when_asked_for(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare(images, tmp_path / "out")
    _add(images, "new.png", caption="x")
    capsys.readouterr()
    assert (
        _prepare(images, tmp_path / "out") == 2
        and "--overwrite" in _error(capsys)
        and len(_read(tmp_path / "out")) == 3
    )
    assert _prepare(images, tmp_path / "out", "--overwrite") == 0 and len(_read(tmp_path / "out")) == 4


def test_a_folder_with_other_things_is_never_replaced(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("draft")
    assert _prepare(images, tmp_path / "out", "--overwrite") == 2 and "of an earlier call" in _error(capsys)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "draft"


def test_the_images_are_never_replaced_by_their_shards(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / prepare_shards.MANIFEST).touch()
    for output in (images, tmp_path):
        assert _prepare(images, output, "--overwrite") == 2 and "lies in --output" in _error(capsys)
    assert (images / "a.png").exists()


def test_an_interrupted_call_leaves_the_earlier_shards(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prepare(images, tmp_path / "out")
    before = (tmp_path / "out" / "train-000000.tar").read_bytes()

    def interrupted(stem: str, keys: set[str]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_shards, "unique_key", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _prepare(images, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == before
    monkeypatch.undo()
    assert _prepare(images, tmp_path / "out", "--overwrite") == 0 and {
        path.name for path in tmp_path.iterdir()
    } == {"images", "out"}


def _wrong_inputs(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "missing", "does not exist"
    (folder / "empty").mkdir()
    yield folder / "empty", "no image in"
    _add(folder / "plain", "a.png")
    yield folder / "plain", "none of 1 images has a caption, the first is 'a.png'"
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").touch()
    (folder / "broken" / "a.txt").write_text("x")
    yield folder / "broken", "none of 1 images is left for training; left out: 'a.png'"
    for name, content, message in (
        ("other.xlsx", b"", "neither a folder nor a .tar, .csv"),
        ("nothing.csv", b"", "no image in"),
        ("header.csv", b"image,caption\n", "no image in"),
        ("columns.csv", b"id,url,alt\n1,2,3\n", "no image column image or image_path"),
        ("columns2.csv", b"id,image,alt\n1,2,3\n", "found id, image, alt; name one with --caption-column"),
        ("comma.csv", b"image,caption\na.png,red, round\n", "captions with commas need quotes"),
        ("short.csv", b"image,caption\na.png\n", "more or fewer values than the header"),
        ("quote.csv", b'image,caption\na.png,"red\n', "cannot be read"),
        ("binary.csv", b"\x89PNG\r\n\xff\xfe", "expected a table in UTF-8"),
        (
            "broken.jsonl",
            b'{"image": "a.png", "caption": "x"}\n{"image"\n',
            "the line '{\"image\"', which is no JSON object",
        ),
        ("number.jsonl", b"5\n", "the line '5', which is no JSON object"),
    ):
        (folder / name).write_bytes(content)
        yield folder / name, message


def test_wrong_input_is_one_line_that_says_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, message in _wrong_inputs(tmp_path):
        assert _prepare(source, tmp_path / "out") == 2 and message in _error(capsys), source
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--validation", "1", "share in [0, 1)"),
        ("--validation", "-0.1", "share in [0, 1)"),
        ("--samples-per-shard", "0", "at least 1"),
        ("--resize", "-1", "0 (off)"),
    ],
)
def test_a_wrong_option_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert _prepare(images, tmp_path / "out", option, value) == 2
    error = _error(capsys)
    assert option in error and message in error


def test_the_command_runs_from_anywhere_with_the_package_installed(images: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "prepare_shards.py"),
        "--input",
        "images",
        "--output",
        "out",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    # No progress bar without a terminal.
    assert (
        done.returncode == 0
        and done.stdout == "out: 3 training and 0 validation samples, 0 without a caption\n"
        and done.stderr == ""
    )


def test_each_filter_leaves_out_and_counts_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    for name, size, color in (
        ("good.png", (30, 30), (200, 0, 0)),
        ("copy.bmp", (40, 40), (200, 0, 0)),
        ("small.png", (30, 9), (0, 200, 0)),
    ):
        _add(folder, name, caption=name, size=size, color=color)
    _add(folder, "long.png", caption="x", size=(90, 10), color=(0, 0, 200))
    (folder / "broken.jpg").touch()
    assert (
        _prepare(folder, tmp_path / "out", "--min-size", "10", "--max-aspect", "4", "--duplicates", "0") == 0
    )
    # Sorted by name: the copy comes first.
    assert set(_read(tmp_path / "out")) == {"copy"}
    manifest = json.loads((tmp_path / "out" / prepare_shards.MANIFEST).read_text())
    assert manifest["left_out"] == {"broken": 1, "duplicate": 1, "too long": 1, "too small": 1}
    printed = capsys.readouterr().out
    assert "'good.png': looks like 'copy.bmp'" in printed and "1 duplicate" in printed


def test_a_stopped_call_goes_on_without_looking_or_writing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        _add(tmp_path / "images", f"{number}.png", caption="x")
    write, wrote = prepare_shards.write_shard, []

    def stop_at_the_second(path: Path, samples: object) -> None:
        if wrote:
            raise KeyboardInterrupt
        wrote.append(path.name)
        write(path, samples)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_shards, "write_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            _prepare(tmp_path / "images", tmp_path / "out", "--samples-per-shard", "2")
    kept = (tmp_path / "out.unfinished" / "train-000000.tar").stat()
    monkeypatch.delattr(prepare_shards, "look")
    monkeypatch.setattr(prepare_shards, "look", None, raising=False)
    assert _prepare(tmp_path / "images", tmp_path / "out", "--samples-per-shard", "2") == 0
    assert (tmp_path / "out" / "train-000000.tar").stat() == kept and len(_read(tmp_path / "out")) == 5
    # Done: nothing is written again.
    assert _prepare(tmp_path / "images", tmp_path / "out", "--samples-per-shard", "2") == 0
    assert (tmp_path / "out" / "train-000000.tar").stat() == kept


def test_the_number_of_workers_changes_nothing(images: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        _prepare(images, tmp_path / workers, "--workers", workers)
    assert (tmp_path / "1" / "train-000000.tar").read_bytes() == (
        tmp_path / "3" / "train-000000.tar"
    ).read_bytes()
