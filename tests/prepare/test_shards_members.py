"""What the members of a sample and the record of a set hold, in cases that are easily lost."""

import json
from pathlib import Path

from tests.prepare.folders import add_picture, prepare, read_captions, read_samples, read_set_manifest


def test_two_captions_stay_two_in_the_record_and_have_no_text_of_both(tmp_path: Path) -> None:
    for number, captions in enumerate((["one"], ["one", "two"])):
        picture = add_picture(tmp_path / "in", f"{number}.png")
        picture.with_suffix(".json").write_text(json.dumps({"caption": captions}), encoding="utf-8")
    prepare(tmp_path / "in", tmp_path / "out")
    single, double = read_samples(tmp_path / "out").values()
    assert single["txt"] == b"one"
    assert "txt" not in double and json.loads(double["json"])["caption"] == ["one", "two"]


def test_the_name_of_a_source_changes_nothing_in_a_terminal(tmp_path: Path) -> None:
    add_picture(tmp_path / "in", "a\x1b[31m.png", caption="a cat")
    prepare(tmp_path / "in", tmp_path / "out")
    (sample,) = read_samples(tmp_path / "out").values()
    assert json.loads(sample["json"])["source_file"] == r"a\x1b[31m.png"


def test_versions_are_noted_of_packages_that_the_bytes_depend_on(images: Path, tmp_path: Path) -> None:
    for name, options in (("plain", {}), ("resized", {"resize": 8}), ("alike", {"duplicates": 2})):
        prepare(images, tmp_path / name, **options)
        assert ("versions" in read_set_manifest(tmp_path / name)) == (name != "plain"), name


def test_a_caption_that_cannot_be_opened_does_not_hide_those_of_others(tmp_path: Path) -> None:
    add_picture(tmp_path / "in", "a.png")
    (tmp_path / "in" / "a.txt").symlink_to("gone.txt")
    add_picture(tmp_path / "in", "b.png", caption="a dog")
    prepared = prepare(tmp_path / "in", tmp_path / "out")
    assert prepared.counts["train"] >= 1 and read_captions(tmp_path / "out")["b"] == "a dog"
