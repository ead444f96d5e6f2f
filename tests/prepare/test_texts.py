import json
from pathlib import Path

import pytest

from diffmoe_scale.prepare.texts import parse_record
from diffmoe_scale.unicode import TEXT_NOTES
from tests.prepare.folders import add_picture, prepare, read_captions, read_samples


def test_captions_and_what_else_is_known_come_from_json(images: Path, tmp_path: Path) -> None:
    (images / "a.txt").unlink()
    (images / "a.json").write_text('{"caption": " from json ", "license": "CC0"}')
    (images / "deep" / "c.d.txt").unlink()
    (images / "deep" / "c.d.json").write_text('{"caption": ["one", "two"]}')
    prepare(images, tmp_path / "out")
    samples = read_samples(tmp_path / "out")
    assert samples["a"]["txt"] == b"from json" and json.loads(samples["a"]["json"])["license"] == "CC0"
    # Training draws one of several.
    assert "txt" not in samples["deep_c_d"]
    assert json.loads(samples["deep_c_d"]["json"])["caption"] == ["one", "two"]


def test_an_empty_text_hides_no_caption_and_none_is_overwritten(images: Path, tmp_path: Path) -> None:
    (images / "a.txt").write_text(" \n")
    (images / "a.json").write_text('{"caption": "from json"}')
    (images / "deep" / "c.d.json").write_text('{"caption": "other"}')
    (images / "deep" / "er" / "b.txt").write_text("")
    (images / "deep" / "er" / "b.jpg.txt").write_text("whole name")
    prepare(images, tmp_path / "out")
    samples = read_samples(tmp_path / "out")
    assert read_captions(tmp_path / "out") == {
        "a": "from json",
        "deep_c_d": "caption 2",
        "deep_er_b": "whole name",
    }
    assert json.loads(samples["a"]["json"])["caption"] == "from json"
    assert json.loads(samples["deep_c_d"]["json"])["caption"] == "other"


@pytest.mark.parametrize(
    "damage",
    [
        b"{broken",
        b"[1]",
        b'["a", "list"]',
        b"\xff\xfe\xff",
        b'{"caption": "x", "d": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"caption": "x", "d": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"n": ' + b"1" * 5000 + b"}",
    ],
)
def test_an_unreadable_record_costs_the_picture_only_where_there_is_no_other_caption(
    images: Path, tmp_path: Path, damage: bytes
) -> None:
    (images / "a.json").write_bytes(damage)
    (images / "deep" / "c.d.txt").unlink()
    (images / "deep" / "c.d.json").write_bytes(damage)
    prepared = prepare(images, tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"a": "caption 0", "deep_er_b": "caption 1"}
    (left_out,) = prepared.left_out.names["unreadable caption"]
    assert left_out.startswith("'deep/c.d.webp': deep/c.d.json: its .json is no JSON object")
    (note,) = prepared.notes.names["text that could not be read"]
    assert note.startswith("a.png: a.json: its .json is no JSON object")


def test_odd_texts_are_kept_counted_and_named(tmp_path: Path) -> None:
    texts = {
        "utf16": "hello there".encode("utf-16"),
        "cp1252": "café noir".encode("cp1252"),
        "mark": b"\xef\xbb\xbfa red house",
        "nul": b"a\0b",
        "long": b"x" * 1_000_000,
    }
    for name, text in texts.items():
        add_picture(tmp_path / "photos", f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_bytes(text)
    add_picture(tmp_path / "photos", "half.png")
    (tmp_path / "photos" / "half.json").write_text('{"caption": ["an emoji cut in half \\ud83d"]}')
    prepared = prepare(tmp_path / "photos", tmp_path / "out")
    assert read_captions(tmp_path / "out") == {
        "utf16": "hello there",
        "cp1252": "café noir",
        "mark": "a red house",
        "nul": "ab",
        "long": "x" * 1_000_000,
        "half": "an emoji cut in half �",
    }
    expected = {"byte_order_mark": 2, "not_utf8": 1, "nuls": 1, "half_pair": 1}
    assert prepared.notes.counts == {TEXT_NOTES[kind]: count for kind, count in expected.items()}
    assert prepared.notes.names[TEXT_NOTES["half_pair"]] == ["half.png: half.json"]


def test_records_are_objects() -> None:
    assert parse_record('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for text in ("", "null", "5", "[", '"x"', "[]"):
        with pytest.raises(ValueError):
            parse_record(text)
