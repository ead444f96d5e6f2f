import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.prepare import judge, shards
from diffmoe_scale.prepare.losses import KEPT_NAMES, Losses
from tests.data.samples import encode, read_batches
from tests.prepare.folders import (
    add_picture,
    prepare,
    read_captions,
    read_samples,
    read_set_manifest,
    write_table,
)


def test_a_folder_becomes_shards_with_the_original_bytes(images: Path, tmp_path: Path) -> None:
    prepare(images, tmp_path / "out")
    samples = read_samples(tmp_path / "out")
    originals = {
        "a": ("png", "a.png"),
        "deep_er_b": ("jpg", "deep/er/b.jpg"),
        "deep_c_d": ("webp", "deep/c.d.webp"),
    }
    assert samples.keys() == originals.keys()
    for number, (key, (suffix, name)) in enumerate(originals.items()):
        assert samples[key].keys() == {suffix, "txt", "json"}
        assert samples[key][suffix] == (images / name).read_bytes()
        assert samples[key]["txt"].decode() == f"caption {number}"
        assert json.loads(samples[key]["json"]) == {
            "caption": f"caption {number}",
            "original_width": 6,
            "original_height": 4,
            "source_file": name,
        }


def test_training_reads_what_was_written(images: Path, tmp_path: Path) -> None:
    prepare(images, tmp_path / "out", samples_per_shard=2)
    patterns = [f"{tmp_path}/out/train-*.tar"]
    config = DataConfig(caption_dropout=0.0)
    reader = build_reader(config, patterns, model=ModelConfig(image_size=4), seed=0)
    batch = next(read_batches(reader, global_batch=3, micro_batch=3))
    assert len(reader.catalog.paths) == 2 and reader.catalog.problems == {}
    assert batch.weight_B.tolist() == [1, 1, 1]
    assert set(batch.captions) == {"caption 0", "caption 1", "caption 2"}


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_input_gives_equal_bytes_whatever_the_workers(
    images: Path, tmp_path: Path, workers: int
) -> None:
    prepare(images, tmp_path / "1")
    prepare(images, tmp_path / "2", workers=workers)
    first, second = (tmp_path / folder / "train-000000.tar" for folder in "12")
    assert first.read_bytes() == second.read_bytes()


def test_shards_are_as_long_as_asked_for(tmp_path: Path) -> None:
    for number in range(7):
        add_picture(tmp_path / "images", f"{number}.png", caption="x")
    prepare(tmp_path / "images", tmp_path / "out", samples_per_shard=3)
    found = [len(read_samples(tmp_path / "out", f"train-{shard:06d}")) for shard in range(3)]
    assert found == [3, 3, 1]


def test_broken_images_are_left_out_and_named(images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    (images / "empty.jpg").touch()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(pixels), "JPEG")
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    prepared = prepare(images, tmp_path / "out")
    printed = "\n".join(prepared.lines())
    assert "3 training and 0 validation samples" in printed and "left out 3 of 6 images" in printed
    assert all(f"'{name}'" in printed for name in ("broken.png", "empty.jpg", "half.jpg"))
    manifest = read_set_manifest(tmp_path / "out")
    assert manifest["samples"] == {"train": 3, "validation": 0, "uncaptioned": 0}
    assert manifest["images"] == 6 and manifest["left_out"] == {"broken": 3}
    named = Losses.from_json(manifest["left_out_names"]).names
    assert sum(map(len, named.values())) == 3


def test_of_many_broken_images_some_are_named_and_all_are_counted(images: Path, tmp_path: Path) -> None:
    for number in range(KEPT_NAMES + 5):
        (images / f"broken{number:04d}.png").touch()
    printed = "\n".join(prepare(images, tmp_path / "out").lines())
    assert printed.count("'broken") == 10 and f"and {KEPT_NAMES - 5} more" in printed.replace(",", "")
    kept = read_set_manifest(tmp_path / "out")["left_out_names"]["broken"]
    assert kept["count"] == KEPT_NAMES + 5 and len(kept["names"]) == KEPT_NAMES  # type: ignore[arg-type]


def test_an_image_without_a_caption_is_kept_and_named(images: Path, tmp_path: Path) -> None:
    add_picture(images, "plain.png")
    prepared = prepare(images, tmp_path / "out")
    assert read_samples(tmp_path / "out")["plain"]["txt"] == b""
    assert prepared.counts["uncaptioned"] == 1 and prepared.notes.names == {
        "without a caption": ["plain.png"]
    }


def test_captions_can_be_required(images: Path, tmp_path: Path) -> None:
    add_picture(images, "plain.png")
    prepared = prepare(images, tmp_path / "out", require_captions=True)
    assert "plain" not in read_samples(tmp_path / "out")
    assert prepared.left_out.names == {"without caption": ["'plain.png': no caption"]}


def test_unicode_names_and_captions_survive(images: Path, tmp_path: Path) -> None:
    add_picture(images, "grüße/猫 😀.png", caption="ein grüner Kreis")
    prepare(images, tmp_path / "out")
    assert read_captions(tmp_path / "out")["grüße_猫_😀"] == "ein grüner Kreis"


def test_validation_is_a_stable_share_by_name(tmp_path: Path) -> None:
    for number in range(200):
        add_picture(tmp_path / "images", f"{number}.png", caption="x")
    prepare(tmp_path / "images", tmp_path / "all", validation=0.25)
    train, validation = (set(read_samples(tmp_path / "all", f"{part}-*")) for part in ("train", "validation"))
    # Binomial: 50 +- 6; five standard deviations.
    assert abs(len(validation) - 50) < 31 and not train & validation and len(train | validation) == 200
    for number in range(0, 200, 2):
        (tmp_path / "images" / f"{number}.png").unlink()
    prepare(tmp_path / "images", tmp_path / "half", validation=0.25)
    assert set(read_samples(tmp_path / "half")) <= train
    assert set(read_samples(tmp_path / "half", "validation-*")) <= validation


def test_a_share_that_leaves_no_image_for_validation_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--validation is 0\.001, and none of 3 images fell into that share"
    ):
        prepare(images, tmp_path / "out", validation=0.001)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()


def test_rows_with_the_same_image_fall_into_one_split(tmp_path: Path) -> None:
    rows = [
        {"image": add_picture(tmp_path, f"{number}.png").name, "caption": f"{number} {view}"}
        for number in range(40)
        for view in range(3)
    ]
    prepare(write_table(tmp_path / "data.csv", rows), tmp_path / "out", validation=0.5)
    train, validation = (
        {sample["txt"].split()[0] for sample in read_samples(tmp_path / "out", f"{split}-*").values()}
        for split in ("train", "validation")
    )
    assert not train & validation and len(train | validation) == 40


def test_each_filter_leaves_out_and_counts_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    add_picture(folder, "good.png", caption="x", size=(30, 30), color=(200, 0, 0))
    add_picture(folder, "copy.bmp", caption="x", size=(40, 40), color=(200, 0, 0))
    add_picture(folder, "small.png", caption="x", size=(30, 9), color=(0, 200, 0))
    add_picture(folder, "long.png", caption="x", size=(90, 10), color=(0, 0, 200))
    (folder / "broken.jpg").touch()
    prepared = prepare(folder, tmp_path / "out", min_size=10, max_aspect=4.0, duplicates=0)
    # Sorted by name: the copy comes first.
    assert set(read_samples(tmp_path / "out")) == {"copy"}
    assert prepared.left_out.counts == {"broken": 1, "duplicate": 1, "too long": 1, "too small": 1}
    assert prepared.left_out.names["duplicate"] == ["'good.png': looks like 'copy.bmp'"]


def test_resized_images_have_that_shorter_side_and_small_ones_keep_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("photo.jpg", "drawing.png", "wide.bmp"):
        add_picture(folder, name, caption="x", size=(90, 30), color=(200, 30, 60))
    small = add_picture(folder, "small.jpg", caption="x", size=(90, 10))
    (folder / "clear.webp").write_bytes(encode(Image.new("RGBA", (30, 60), (9, 8, 7, 0)), "WEBP"))
    prepare(folder, tmp_path / "out", resize=10)
    samples = read_samples(tmp_path / "out")
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
    assert (np.asarray(opened["drawing.png"]) == (200, 30, 60)).all()
    assert json.loads(samples["photo"]["json"])["original_width"] == 90


def test_a_stopped_call_goes_on_without_looking_or_writing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        add_picture(tmp_path / "images", f"{number}.png", caption="x")
    write = shards.write_shard
    wrote: list[str] = []

    def stop_at_the_second(path: Path, samples: object) -> None:
        if wrote:
            raise KeyboardInterrupt
        wrote.append(path.name)
        write(path, samples)  # type: ignore[arg-type]  # handed on

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "images", tmp_path / "out", samples_per_shard=2)
    kept = (tmp_path / "out.unfinished" / "train-000000.tar").stat()
    monkeypatch.setattr(judge, "look", None)
    prepare(tmp_path / "images", tmp_path / "out", samples_per_shard=2)
    assert (tmp_path / "out" / "train-000000.tar").stat() == kept
    assert len(read_samples(tmp_path / "out")) == 5
    # Done: nothing is written again.
    assert not prepare(tmp_path / "images", tmp_path / "out", samples_per_shard=2).is_new
    assert (tmp_path / "out" / "train-000000.tar").stat() == kept
