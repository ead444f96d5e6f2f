import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.prepare.prepared import read_class_names
from tests.data.samples import make_sample, read_batches, write_shard
from tests.prepare.folders import add_picture, prepare, read_samples, read_set_manifest, write_table


def add_classes(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            add_picture(folder, f"{name}/{number}.JPEG", color=(len(name) * 20, number, 0))
    return folder


def labels_of(output: Path, shards: str = "train-*") -> dict[str, int]:
    """By the name of the picture."""
    return {
        json.loads(sample["json"])["source_file"]: int(sample["cls"])
        for sample in read_samples(output, shards).values()
    }


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"n10": 2, "n02": 3, "Z": 1, "n02 b": 1})
    add_picture(tmp_path / "in", "n02/deeper/n10/4.png")
    prepared = prepare(tmp_path / "in", tmp_path / "out", classes="folders")
    names = ["Z", "n02", "n02 b", "n10"]
    assert prepared.class_names == names
    labels = labels_of(tmp_path / "out")
    assert len(labels) == 8 and labels["n02/deeper/n10/4.png"] == 1
    assert labels == {name: names.index(name.split("/")[0]) for name in labels}
    assert prepared.class_samples == {"train": [1, 4, 1, 2], "validation": [0, 0, 0, 0]}
    # No captions are missing: there are none.
    assert not prepared.notes.counts and prepared.counts["uncaptioned"] == 0
    samples = read_samples(tmp_path / "out").values()
    assert all(sample.keys() in ({"jpg", "json", "cls"}, {"png", "json", "cls"}) for sample in samples)


def test_the_manifest_names_and_counts_the_classes_and_is_read_again(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"a": 20, "b": 30})
    first = prepare(tmp_path / "in", tmp_path / "out", classes="folders", validation=0.3)
    manifest = read_set_manifest(tmp_path / "out")
    assert manifest["classes"] == [
        {"label": 0, "folder": "a", "name": "a"},
        {"label": 1, "folder": "b", "name": "b"},
    ]
    for split in ("train", "validation"):
        labels = list(labels_of(tmp_path / "out", f"{split}-*").values())
        assert manifest["class_samples"][split] == [labels.count(0), labels.count(1)]
        assert 0 not in manifest["class_samples"][split]
    again = prepare(tmp_path / "in", tmp_path / "out", classes="folders", validation=0.3)
    assert not again.is_new
    assert (again.class_names, again.class_samples) == (first.class_names, first.class_samples)
    (line, *_) = (line for line in again.lines() if "classes" in line)
    low, high = sorted(manifest["class_samples"]["train"])
    assert f"2 classes from 0 (a) to 1 (b), {low} to {high} training samples each" in line
    assert "model.conditioning=class model.num_classes=2" in list(again.lines())[-1]


def test_every_shard_holds_all_classes(tmp_path: Path) -> None:
    """Training shuffles within some shards at a time."""
    add_classes(tmp_path / "in", {"a": 40, "b": 40})
    prepare(tmp_path / "in", tmp_path / "out", classes="folders", samples_per_shard=20)
    for number in range(4):
        labels = list(labels_of(tmp_path / "out", f"train-00000{number}").values())
        assert len(labels) == 20 and 3 < sum(labels) < 17


def test_a_list_gives_labels_and_names_and_leaves_other_folders_out(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"n1": 1, "n2": 1, "n3": 2, "two words": 1})
    add_picture(tmp_path / "in", "stray.png")
    file = tmp_path / "list.txt"
    file.write_text("n3 fish, of the sea\r\ntwo words\nn1\n\n", encoding="utf-8-sig")
    prepared = prepare(tmp_path / "in", tmp_path / "out", classes=str(file))
    assert prepared.class_names == ["fish, of the sea", "two words", "n1"]
    assert labels_of(tmp_path / "out") == {
        "n3/0.JPEG": 0,
        "n3/1.JPEG": 0,
        "two words/0.JPEG": 1,
        "n1/0.JPEG": 2,
    }
    assert prepared.unused.names == {
        "picture of a folder that is not in the list of --classes": ["n2/0.JPEG"],
        "picture outside the class folders": ["stray.png"],
    }


def test_captions_beside_the_pictures_are_kept(tmp_path: Path) -> None:
    add_picture(tmp_path / "in", "a/0.png", caption="a word")
    add_picture(tmp_path / "in", "b/0.png")
    prepare(tmp_path / "in", tmp_path / "out", classes="folders")
    samples = read_samples(tmp_path / "out")
    assert samples["a_0"]["txt"] == b"a word" and "txt" not in samples["b_0"]


def test_a_changed_list_is_named(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"a": 1, "b": 1})
    file = tmp_path / "list.txt"
    file.write_text("a\nb\n")
    prepare(tmp_path / "in", tmp_path / "out", classes=str(file))
    file.write_text("b\na\n")
    with pytest.raises(ValueError, match=r"made with other arguments or files \(classes: "):
        prepare(tmp_path / "in", tmp_path / "out", classes=str(file))


def test_sets_without_classes_are_known_as_before(images: Path, tmp_path: Path) -> None:
    prepare(images, tmp_path / "out")
    assert not {"classes", "class_samples"} & read_set_manifest(tmp_path / "out").keys()


def test_training_reads_the_labels(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"a": 3, "b": 2, "c": 1})
    prepare(tmp_path / "in", tmp_path / "out", classes="folders")
    reader = build_reader(
        DataConfig(caption_dropout=0.0),
        [f"{tmp_path}/out/train-*.tar"],
        model=ModelConfig(image_size=4, conditioning="class", num_classes=3),
        seed=0,
    )
    batch = next(read_batches(reader, global_batch=6, micro_batch=6))
    assert batch.weight_B.tolist() == [1] * 6 and sorted(batch.labels_B.tolist()) == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "missing.txt",
            r"--classes missing\.txt cannot be read: No such file.*; expected 'folders' or a file",
        ),
        ("", "--classes .*list.txt'; expected a file with the name of a class folder a line; it is empty"),
        ("a\nfish\n", r"line 2 of --classes .*list\.txt is 'fish'; expected a folder of .* with pictures"),
        ("a\nempty\n", "line 2 of --classes .* is 'empty'; expected a folder of .* with pictures"),
        ("a\n\nb\n", "line 2 of --classes .* is empty; remove it"),
        ("a one\nb\na two\n", "line 3 of --classes .* is 'a two'; expected each class once"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    add_classes(tmp_path / "in", {"a": 1, "b": 1})
    (tmp_path / "in" / "empty").mkdir()
    file = tmp_path / "list.txt"
    file.write_text(what)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "in", tmp_path / "out", classes=what if what.endswith(".txt") else str(file))


def test_an_empty_folder_would_be_no_class(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"a": 1, "c": 1})
    for name in ("b", ".hidden", "out"):
        (tmp_path / "in" / name).mkdir()
    (tmp_path / "in" / "b" / "notes.txt").touch()
    output = tmp_path / "in" / "out"
    with pytest.raises(
        ValueError, match=r"--input .* has 1 class folder without a picture: b; remove them, or"
    ):
        prepare(tmp_path / "in", output, classes="folders")
    (tmp_path / "in" / "b" / "notes.txt").unlink()
    (tmp_path / "in" / "b").rmdir()
    assert prepare(tmp_path / "in", output, classes="folders").class_names == ["a", "c"]


def test_an_empty_tar_file_would_be_no_class_and_some_of_many_are_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "f").mkdir(parents=True)
    write_shard(source / "a.tar", {"0": make_sample(0, 0)})
    for number in range(6):
        tarfile.open(source / f"e{number}.tar", "w").close()
    with pytest.raises(
        ValueError, match=r"has 7 class folders without a picture: e0, e1, e2, e3, e4, \.\.\.; "
    ):
        prepare(source, tmp_path / "out", classes="folders")


def test_a_tar_file_within_a_class_is_a_part_of_it(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for folder in ("x", "y"):
        (source / folder).mkdir(parents=True)
        write_shard(source / folder / "one.tar", {"0": make_sample(0, 0)})
    prepared = prepare(source, tmp_path / "out", classes="folders")
    assert prepared.class_names == ["x", "y"] and prepared.class_samples["train"] == [1, 1]


def test_names_of_classes_change_nothing_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    add_classes(tmp_path / "in", {"a": 1, "b\x1b": 1})
    assert prepare(tmp_path / "in", tmp_path / "of_folders", classes="folders").class_names == ["a", r"b\x1b"]
    (tmp_path / "list.txt").write_text("a a\u202eb\n", encoding="utf-8")
    output = tmp_path / "of_list"
    assert prepare(tmp_path / "in", output, classes="~/list.txt").class_names == [r"a\u202eb"]
    manifest = read_set_manifest(output)
    (output / "shards.json").write_text(json.dumps(manifest | {"classes": [{"name": "a\x1b"}]}))
    assert read_class_names(output) == [r"a\x1b"]


def test_a_class_that_loses_all_its_pictures_is_an_error(tmp_path: Path) -> None:
    add_classes(tmp_path / "in", {"a": 2})
    add_picture(tmp_path / "in", "b/0.png", size=(2, 2))
    (tmp_path / "in" / "b" / "1.png").write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"class 1 \(b\) is left for training; left out: 1 too small, 1 broken"
    ):
        prepare(tmp_path / "in", tmp_path / "out", classes="folders", min_size=3)


def test_only_a_tree_of_folders_has_classes(images: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "list.csv", [{"path": "images/a.png", "caption": "x"}])
    with pytest.raises(
        ValueError, match=r"--input is .*list\.csv'; expected a folder with one folder for each"
    ):
        prepare(table, tmp_path / "out", classes="folders")
    archive = write_shard(tmp_path / "x.tar", {"a/0": make_sample(0, 0)})
    (tmp_path / "tables").mkdir()
    cells = {"jpg": [make_sample(0, 0)["png"]], "caption": ["x"]}
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "tables" / "a.parquet")
    for source in (archive, tmp_path / "tables"):
        with pytest.raises(
            ValueError, match=r"expected a folder with one folder for each class, for --cl.*s$"
        ):
            prepare(source, tmp_path / "out", classes="folders")
    flat = tmp_path / "flat"
    add_picture(flat, "a.png")
    with pytest.raises(
        ValueError, match=r"expected a folder with one folder .*; its pictures lie in no folder"
    ):
        prepare(flat, tmp_path / "out", classes="folders")
