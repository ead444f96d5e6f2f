import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from tests.data.samples import encode, write_shards
from tests.prepare.folders import add_picture, prepare
from tools import inspect_data


def test_counts_sizes_captions_and_what_is_broken_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"jpg": encode(Image.new("RGB", (40, 10)), "JPEG"), "txt": "über drei Wörter".encode()}
    paths = write_shards(
        tmp_path,
        [6, 4],
        replaced={
            "0_1": {"png": b"broken", "txt": b"x"},
            "0_2": odd,
            "1_0": {"png": encode(Image.new("L", (4, 4)))},
        },
    )
    paths[0].rename(tmp_path / "twin.tar")
    (tmp_path / "shard-000.tar").write_bytes((tmp_path / "twin.tar").read_bytes())
    page = tmp_path / "pages" / "data.html"
    assert inspect_data.main(["--input", f"{tmp_path}/*.tar", "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    facts = {line[:24].strip(): line[24:] for line in printed.splitlines()}
    assert facts["samples"].startswith("16 in 3 shards") and facts["samples"].endswith("16 read")
    assert (
        facts["broken samples"] == "2 BadPicture"
        and facts["without caption"] == "1"
        and facts["duplicate keys"] == "12"
    )
    assert (
        facts["width"].startswith("4 to 40")
        and facts["width / height"].startswith("1 to 4")
        and facts["caption words"].startswith("1 to 3")
    )
    html = page.read_text()
    assert (
        "shard-000.tar/0_1: BadPicture" in html
        and html.count("data:image/") == 2
        and "http" not in html.replace("http-equiv", "")
    )


def test_tokens_of_a_run_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, [3])
    (tmp_path / "c.yaml").write_text("model: {image_size: 16, patch_size: 4}")
    assert (
        inspect_data.main(
            [
                "--config",
                str(tmp_path / "c.yaml"),
                "--input",
                f"{tmp_path}/*.tar",
                f"run.directory={tmp_path}",
            ]
        )
        == 0
    )
    assert "image tokens an epoch   48" in capsys.readouterr().out


def test_features_in_buckets_are_shown_and_those_of_another_shape_are_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FeatureSource(
        "a",
        "",
        channels=4,
        factor=8,
        image_size=64,
        aspects=(0.5, 1.0),
        step=16,
        num_views=1,
        precision="bf16",
    )
    FeatureSet(source).save(tmp_path)
    # The buckets are 80 x 48 and 64 x 64 pixels.
    samples = {
        "0_0": ((4, 10, 6), Size(300, 150)),
        "0_1": ((4, 8, 8), Size(300, 150)),
        "0_2": ((4, 8, 8), Size(30, 30)),
    }
    replaced = {
        key: {
            "safetensors": pack_sample(
                torch.zeros(1, *shape), [], [], original=original, crop=(0, 0), precision="bf16"
            ),
            "txt": b"x",
        }
        for key, (shape, original) in samples.items()
    }
    write_shards(tmp_path, [3], replaced=replaced)
    assert inspect_data.main(["--input", f"{tmp_path}/*.tar", "--html", str(tmp_path / "data.html")]) == 0
    printed = capsys.readouterr().out
    assert "bf16, latents of 4 channels, 1/8 of 64 pixels, aspects 0.5, 1, 1 view, text not stored" in printed
    assert (
        "1 ValueError" in printed
        and "0_1: ValueError: latents of shape (1, 4, 8, 8); expected (1, 4, 10, 6)" in printed
    )


@pytest.mark.parametrize(
    ("options", "message"), [(["--samples", "-1"], "--samples is -1"), (["a.b=1"], "without --config")]
)
def test_a_wrong_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write_shards(tmp_path, [1])
    assert (
        inspect_data.main(["--input", f"{tmp_path}/*.tar", *options]) == 2
        and message in capsys.readouterr().err
    )


def _inspect(capsys: pytest.CaptureFixture[str], pattern: str, *options: str) -> str:
    capsys.readouterr()
    assert inspect_data.main(["--input", pattern, *options]) == 0
    return capsys.readouterr().out


def test_losses_odd_texts_and_what_training_does_not_see_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moving = encode(
        Image.new("RGB", (4, 4)), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
    )
    replaced = {
        "0_1": {"gif": moving, "txt": "caf\u00e9".encode("cp1252")},
        "0_2": {"txt": b"no picture"},
        "0_3": {"png": encode(Image.new("RGB", (4, 4))), "json": b"[1]"},
    }
    write_shards(tmp_path, [4], replaced=replaced)
    with tarfile.open(tmp_path / "shard-000.tar", "a") as archive:
        header = tarfile.TarInfo("link.png")
        header.type, header.linkname = tarfile.SYMTYPE, "0_0.png"
        archive.addfile(header)
    printed = _inspect(capsys, f"{tmp_path}/*.tar")
    for line in (
        "  no image: 1",
        "    shard-000.tar: 0_2 (has txt)",
        "  link: 1",
        "    shard-000.tar: link.png",
        "    shard-000.tar/0_1.txt",
        "    shard-000.tar/0_3.json: expected an object, found list",
        "    shard-000.tar/0_1",
    ):
        assert line in printed.splitlines(), line


def test_what_the_preparation_left_out_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        add_picture(tmp_path / "photos", name, caption="x")
    (tmp_path / "photos" / "broken.png").touch()
    (tmp_path / "photos" / "orphan.txt").write_text("x")
    prepare(tmp_path / "photos", tmp_path / "out")
    printed = _inspect(capsys, f"{tmp_path}/out/*.tar")
    assert "left out by shards.json 1 broken, 1 text without a picture" in " ".join(printed.split())
    assert "    'broken.png': BadPicture" in printed and "    orphan.txt" in printed


def test_captions_are_those_that_the_weights_of_the_config_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = {"png": encode(Image.new("RGB", (4, 4))), "json": b'{"long": "one two three", "caption": "x"}'}
    write_shards(tmp_path, [1], replaced={"0_0": several})
    (tmp_path / "c.yaml").write_text("model: {image_size: 16, patch_size: 4}")
    options = ["--config", str(tmp_path / "c.yaml"), f"run.directory={tmp_path}"]
    printed = _inspect(capsys, f"{tmp_path}/*.tar", *options, "data.caption_weights={long: 1}")
    assert "caption words           3 to 3" in printed


def test_classes_are_counted_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in {"cat": 3, "dog": 2, "owl": 1}.items():
        for number in range(count):
            add_picture(tmp_path / "in", f"{name}/{number}.png", color=(number, 0, len(name)))
    prepare(tmp_path / "in", tmp_path / "out", classes="folders")
    assert inspect_data.main(["--input", f"{tmp_path}/out/*.tar"]) == 0
    printed = capsys.readouterr().out
    facts = {line[:24].strip(): line[24:] for line in printed.splitlines()}
    assert facts["classes"] == "3 labels, 0 to 2" and facts["samples a class"].startswith("1 to 3, median 2")
    assert facts["samples by class"] == "0 cat: 3, 1 dog: 2, 2 owl: 1"


def test_labels_of_another_tool_are_counted_and_broken_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards.json").write_text('{"classes": [3], "class_samples": []}')
    image = encode(Image.new("RGB", (4, 4)))
    labels = {f"0_{row}": {"png": image, "cls": b"%d\n" % (row % 14)} for row in range(15)}
    write_shards(tmp_path, [16], replaced=labels | {"0_15": {"png": image, "cls": b"cat"}})
    assert inspect_data.main(["--input", f"{tmp_path}/*.tar"]) == 0
    printed = capsys.readouterr().out
    assert "14 labels, 0 to 13" in printed and "1 label that is no number" in printed
    assert "shard-000.tar/0_15.cls: 'cat'" in printed
    assert "0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, ..., 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1" in printed
