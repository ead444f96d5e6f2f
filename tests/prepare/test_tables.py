import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.place import Columns
from diffmoe_scale.prepare.tables import list_table
from tests.prepare.folders import add_picture, prepare, read_captions, read_samples, write_table


def rows(table: Path, losses: Losses | None = None) -> list[tuple[str, object]]:
    """Name and caption of each row."""
    columns = Columns(tell=lambda line: None)
    found = list_table(table, columns, losses=losses or Losses())
    return [(entry.name, (entry.record or {})["caption"]) for entry in found]


@pytest.mark.parametrize(
    ("image_column", "caption_column"), [("image", "caption"), ("file_name", "text"), ("filepath", "title")]
)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_a_table_with_usual_columns_is_read(
    images: Path, tmp_path: Path, kind: str, image_column: str, caption_column: str
) -> None:
    told = [
        {image_column: "a.png", caption_column: 'red, "quoted"', "score": "1"},
        {image_column: "deep/er/b.jpg", caption_column: "grün", "score": "2"},
    ]
    table = images / f"data{kind}"
    if kind == ".jsonl":
        table.write_text("\n".join(map(json.dumps, told)) + "\n\n")
    else:
        write_table(table, told, delimiter="," if kind == ".csv" else "\t")
    prepare(table, tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"a": 'red, "quoted"', "deep_er_b": "grün"}
    sample = read_samples(tmp_path / "out")["a"]
    assert sample["png"] == (images / "a.png").read_bytes() and json.loads(sample["json"])["score"] == "1"


def test_columns_can_be_named(images: Path, tmp_path: Path) -> None:
    told = [{"id": 1, "picture": "a.png", "caption": "wrong", "alt": "right"}]
    table = write_table(images / "data.csv", told)
    prepare(table, tmp_path / "out", image_column="picture", caption_column="alt")
    assert read_captions(tmp_path / "out") == {"a": "right"}


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('image\tcaption\n0.png\t"a cat\n1.png\ta dog"\n2.png\tthree\n', ['"a cat', 'a dog"', "three"]),
        ('image\tcaption\n0.png\t"hello"\n', ['"hello"']),
        ('image\tcaption\n0.png\t"say ""hi"""\n', ['say "hi"']),
        ('image\tcaption\n0.png\t5" disk "new"\n', ['5" disk "new"']),
        ('"image"\t"caption"\n"0.png"\t"hello"\n', ["hello"]),
        ('image\tcaption\n0.png\t"two\nlines"\n1.png\tone\n', ["two\nlines", "one"]),
        ("image\tcaption\r\n0.png\ta, b\r\n", ["a, b"]),
    ],
)
def test_quotes_of_a_tsv_are_characters_unless_it_was_written_with_quotes(
    tmp_path: Path, text: str, captions: list[str]
) -> None:
    (tmp_path / "t.tsv").write_text(text, newline="")
    assert [caption for _, caption in rows(tmp_path / "t.tsv")] == captions


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('image,caption\n0.png,"a ""big"", cat"\n', ['a "big", cat']),
        ('image,caption\n0.png,"two\nlines"\n\n1.png,x\n', ["two\nlines", "x"]),
        ("image, caption\n0.png,x\n", ["x"]),
        ("image,caption\n0.png," + "x" * 1_000_000 + "\n", ["x" * 1_000_000]),
        ("\ufeffimage,caption\n0.png,grün\n", ["grün"]),
    ],
)
def test_a_csv_is_read_with_its_quotes(tmp_path: Path, text: str, captions: list[str]) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert [caption for _, caption in rows(tmp_path / "t.csv")] == captions


def test_a_spreadsheet_in_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("image\tcaption\n0.png\tgrün\n", encoding="utf-16")
    assert rows(tmp_path / "t.tsv") == [("0.png", "grün")]


def test_columns_are_looked_for_in_all_rows_of_a_jsonl(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"file_name": "0.png"}\n{"file_name": "1.png", "text": "has one"}\n')
    assert rows(tmp_path / "t.jsonl") == [("0.png", None), ("1.png", "has one")]


def test_lines_that_are_no_object_are_named_and_the_others_read(tmp_path: Path) -> None:
    lines = [
        '{"image": "0.png", "text": "x"}',
        '{"image"',
        "5",
        "",
        '{"image": "1.png", "text": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"image": "2.png", "text": "y"}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    losses = Losses()
    assert rows(tmp_path / "t.jsonl", losses) == [("0.png", "x"), ("2.png", "y")]
    (names,) = losses.names.values()
    assert [name.split(": ")[0] for name in names] == [f"t.jsonl, line {line}" for line in (2, 3, 5)]


def test_rows_without_a_usable_image_are_named(images: Path, tmp_path: Path) -> None:
    names = ("a.png", "missing.png", "", "a", "https://example.org/a.svg")
    table = write_table(images / "data.csv", [{"image": name, "caption": "x"} for name in names])
    prepared = prepare(table, tmp_path / "out")
    assert prepared.left_out.counts == {"unreadable": 4}
    printed = "\n".join(prepared.lines())
    named = ("missing.png", "line 4 of data.csv", "a", "https://example.org/a.svg")
    assert all(f"{name!r}: " in printed for name in named)


def _wrong_tables() -> Iterator[tuple[str, bytes, str]]:
    yield "other.xlsx", b"", "neither a folder nor a .tar, .csv"
    yield "nothing.csv", b"", "no image in"
    yield "header.csv", b"image,caption\n", "no image in"
    yield "columns.csv", b"id,url,alt\n1,2,3\n", "no image column image or image_path"
    yield "columns2.csv", b"id,image,alt\n1,2,3\n", "found id, image, alt; name one with --caption-column"
    yield "twice.csv", b"image,caption,caption\na.png,x,y\n", "has the columns caption twice"
    yield "twice.tsv", b"image\tcaption\timage\na.png\tx\ty\n", "has the columns image twice"
    yield "comma.csv", b"image,caption\na.png,red, round\n", "comma.csv, line 2, has 3 values"
    yield "comma.csv", b"image,caption\na.png,red, round\n", "captions with commas need quotes"
    yield "short.csv", b"image,caption\na.png\n", "more or fewer values than the header"
    yield "stray.csv", b'image,caption\n0.png,"a "big" cat"\n', "line 2 has a quote in the wrong place: 0.png"
    yield "open.csv", b'image,caption\nb.png,x\na.png,"red\n', "a quote opens in line 3 and is never closed"
    yield "binary.csv", b"\x89PNG\r\n\xff\xfe", "expected a table in UTF-8"
    yield "broken.jsonl", b'{"image"\n', "broken.jsonl, line 1: '{\"image\"'"
    yield "number.jsonl", b"5\n", "expected an object, found int"


@pytest.mark.parametrize(("name", "content", "message"), _wrong_tables())
def test_a_wrong_table_is_one_sentence_that_names_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / name, tmp_path / "out")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert name in str(raised.value) or "column" in str(raised.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()


def test_a_folder_with_a_table_beside_its_pictures_names_it(tmp_path: Path) -> None:
    add_picture(tmp_path / "photos", "a.png", caption="x")
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "y"}\n')
    prepared = prepare(tmp_path / "photos", tmp_path / "out")
    (names,) = prepared.unused.names.values()
    assert names == ["metadata.jsonl: give it as --input to read it"]


def test_another_fault_of_a_csv_is_not_called_a_quote(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,caption\r0.png,red\r1.png,blue\r")
    with pytest.raises(ValueError, match=r"t\.csv cannot be read: line 1: new-line character seen"):
        rows(tmp_path / "t.csv")
