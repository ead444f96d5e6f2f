"""What a set is known by: every change of its sources or options is named, never "there already"."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffmoe_scale.prepare import shards
from diffmoe_scale.prepare.sources import Sources
from tests.data.samples import make_sample, write_shard
from tests.prepare.folders import add_picture, prepare, read_captions, write_table


def _correct_caption(images: Path) -> None:
    (images / "a.txt").write_text("corrected")


def _replace_picture(images: Path) -> None:
    add_picture(images, "a.png", color=(9, 9, 9))


def _same_size_caption(images: Path) -> None:
    before = (images / "a.txt").stat()
    (images / "a.txt").write_text("caption 7")
    os.utime(images / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def _add_json(images: Path) -> None:
    (images / "a.json").write_text("{}")


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (_correct_caption, r"1 changed \(a\.txt\)"),
    (_replace_picture, r"1 changed \(a\.png\)"),
    (_same_size_caption, r"1 changed \(a\.txt\)"),
    (_add_json, r"1 new \(a\.json\)"),
    (lambda images: (images / "a.txt").unlink(), r"1 gone \(a\.txt\)"),
    (lambda images: add_picture(images, "new.png"), r"1 new \(new\.png\)"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_changed_files_are_named_and_made_anew_when_asked_for(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    message: str,
    is_interrupted: bool,
) -> None:
    with monkeypatch.context() as patch:
        if is_interrupted:

            def interrupted(path: Path, samples: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(shards, "write_shard", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare(images, tmp_path / "out")
        else:
            prepare(images, tmp_path / "out")
    change(images)
    with pytest.raises(ValueError, match=f"with other arguments or files .files: {message}.*--overwrite"):
        prepare(images, tmp_path / "out")
    prepare(images, tmp_path / "out", overwrite=True)
    caption = (images / "a.txt").read_text() if (images / "a.txt").is_file() else ""
    assert read_captions(tmp_path / "out")["a"] == caption


def test_the_same_files_by_another_path_are_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(images, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert not prepare(Path("images"), Path("out")).is_new


@pytest.mark.parametrize(
    "option",
    [
        {"caption_column": "long"},
        {"image_column": "other"},
        {"require_captions": True},
        {"min_size": 1},
        {"max_aspect": 9.0},
        {"duplicates": 0},
        {"samples_per_shard": 1},
        {"resize": 2},
    ],
)
def test_another_option_is_named(tmp_path: Path, option: dict[str, object]) -> None:
    add_picture(tmp_path, "0.png")
    rows = [{"image": "0.png", "other": "0.png", "caption": "s", "long": "l"}]
    table = write_table(tmp_path / "t.csv", rows)
    prepare(table, tmp_path / "out")
    (name,) = option
    with pytest.raises(ValueError, match=rf"made with other arguments or files \({name}: "):
        prepare(table, tmp_path / "out", **option)


def test_a_change_of_what_a_table_or_tar_holds_is_named(tmp_path: Path) -> None:
    add_picture(tmp_path, "0.png")
    table = write_table(tmp_path / "t.csv", [{"image": "0.png", "caption": "s"}])
    prepare(table, tmp_path / "of_table")
    add_picture(tmp_path, "0.png", color=(9, 9, 9))
    with pytest.raises(ValueError, match=r"1 changed \(0\.png\)"):
        prepare(table, tmp_path / "of_table")
    archive = write_shard(tmp_path / "x.tar", {"0": make_sample(0, 0)})
    prepare(archive, tmp_path / "of_tar")
    write_shard(archive, {"0": make_sample(0, 1)})
    with pytest.raises(ValueError, match=r"1 changed \(x\.tar\)"):
        prepare(archive, tmp_path / "of_tar")
    file = tmp_path / "t.parquet"
    for caption in "ab":
        cells = {"jpg": [make_sample(0, 0)["png"]], "caption": [caption]}
        pyarrow.parquet.write_table(pyarrow.table(cells), file)
        if caption == "a":
            prepare(file, tmp_path / "of_parquet")
    with pytest.raises(ValueError, match=r"1 changed \(t\.parquet\)"):
        prepare(file, tmp_path / "of_parquet")


def test_a_set_of_an_older_version_is_not_taken_for_this_one(images: Path, tmp_path: Path) -> None:
    prepare(images, tmp_path / "out")
    manifest = tmp_path / "out" / "shards.json"
    text = re.sub(r'"sources": \{[^}]*\},', "", manifest.read_text())
    manifest.write_text(text)
    with pytest.raises(ValueError, match="made by an older version, which did not note"):
        prepare(images, tmp_path / "out")


def test_a_folder_with_other_things_is_never_replaced(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("draft")
    with pytest.raises(ValueError, match="of an earlier call"):
        prepare(images, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "draft"


def test_the_images_are_never_replaced_by_their_shards(images: Path, tmp_path: Path) -> None:
    (tmp_path / "shards.json").touch()
    for output in (images, tmp_path):
        with pytest.raises(ValueError, match="lies in --output"):
            prepare(images, output, overwrite=True)
    assert (images / "a.png").exists()


def test_an_interrupted_call_leaves_the_earlier_shards(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(images, tmp_path / "out")
    before = (tmp_path / "out" / "train-000000.tar").read_bytes()

    def interrupted(path: Path, samples: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(images, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == before
    prepare(images, tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}


def test_output_within_the_input_is_no_part_of_it(images: Path) -> None:
    output = images / "shards"
    prepare(images, output)
    assert not prepare(images, output).is_new
    add_picture(images, "new.png", caption="new")
    prepare(images, output, overwrite=True)
    assert set(read_captions(output).values()) == {"caption 0", "caption 1", "caption 2", "new"}


def test_what_is_not_used_is_named_by_its_file_and_reason() -> None:
    def known(unused: dict[str, list[str]], count: int | None = None) -> Sources:
        states = {"a.png": "1 bytes, 5"}
        for reason, names in unused.items():
            states |= {f"not used, {reason}": str(names)}
            states |= {f"not used, {reason}, count": str(len(names) if count is None else count)}
        return Sources(states)

    stray = "text without a picture"
    found = known({}).differences(known({stray: ["notes.txt"]}))
    assert found == "1 new that cannot be used (text without a picture: notes.txt)"
    found = known({stray: ["notes.txt", "b.txt"]}).differences(known({stray: ["b.txt"]}))
    assert found == "1 gone that could not be used (text without a picture: notes.txt)"
    found = known({stray: ["a\x1b", *"bcd"]}).differences(known({}))
    assert found == rf"4 gone that could not be used ({stray}: a\x1b, b, c, ...)"
    found = known({stray: ["b.txt"]}, 1001).differences(known({stray: ["b.txt"]}, 1002))
    assert found == "text without a picture: 1001 there, 1002 now"
    assert known({stray: ["b.txt"]}).differences(known({stray: ["b.txt"]})) == ""
    for text in ("[" * 3000, "3"):
        damaged = Sources({f"not used, {stray}": text})
        assert "notes.txt" in damaged.differences(known({stray: ["notes.txt"]}))
