import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from tests.data.reading.sources import IMAGE, make_source
from tests.data.samples import Members, color, encode, header_offset, make_sample, overwrite


def test_a_number_gives_the_image_and_the_caption_of_its_place(tmp_path: Path) -> None:
    source = make_source(tmp_path, [2, 3])
    for number, (shard, row) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 0)]):
        sample = source.load(number)
        assert (sample.index, sample.key, sample.caption) == (
            number,
            f"shard-{shard:03d}.tar/{shard}_{row}",
            f"caption {shard} {row}",
        )
        assert (
            sample.picture is not None
            and (sample.picture.pixels_HWC == color(shard, row)).all()
            and sample.failure is None
        )


def test_a_corrupt_image_is_a_failure_with_its_key(tmp_path: Path) -> None:
    source = make_source(tmp_path, [3], replaced={"0_1": {"jpg": b"\xff\xd8\xff broken", "txt": b"caption"}})
    failed = source.load(1)
    assert failed.picture is None and failed.is_dropped and failed.caption == ""
    assert failed.failure is not None and (failed.failure.kind, failed.failure.key) == (
        "corrupt",
        "shard-000.tar/0_1",
    )
    assert [source.load(number).failure for number in (0, 2)] == [None, None]


def test_bytes_damaged_after_indexing_are_a_failure(tmp_path: Path) -> None:
    source = make_source(tmp_path, [2])
    path = source.catalog.paths[0]
    overwrite(path, header_offset(path, "0_0.png") + 512, b"garbage!")
    assert source.load(0).failure is not None and source.load(1).failure is None


def test_a_shard_cut_off_after_indexing_gives_read_failures(tmp_path: Path) -> None:
    source = make_source(tmp_path, [3])
    path = source.catalog.paths[0]
    source.load(0)
    os.truncate(path, header_offset(path, "0_1.png") + 520)
    failure = source.load(1).failure
    assert (
        source.load(0).failure is None
        and failure is not None
        and failure.kind == "read"
        and "cut off" in failure.reason
    )


@pytest.mark.parametrize("was_read", [True, False])
def test_a_shard_removed_during_a_run_gives_read_failures(tmp_path: Path, was_read: bool) -> None:
    source = make_source(tmp_path, [2, 2])
    if was_read:
        # Its index is in memory and no longer asked for on disk.
        source.catalog.index(1)
    source.catalog.paths[1].unlink()
    failure = source.load(3).failure
    assert (
        failure is not None
        and failure.kind == "read"
        and failure.key.startswith("shard-001.tar/")
        and "No such file" in failure.reason
    )
    assert source.load(0).failure is None


def test_half_of_the_images_are_mirrored_when_asked_for(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:, :2] = 255
    replaced = {"0_0": {"png": encode(Image.fromarray(pixels)), "txt": b"left"}}
    source = make_source(tmp_path, [1], replaced=replaced, is_augmented=True, horizontal_flip=True)
    images = [picture.pixels_HWC for number in range(400) if (picture := source.load(number).picture)]
    flipped = sum(image is not None and (image == pixels[:, ::-1]).all() for image in images)
    assert flipped + sum(image is not None and (image == pixels).all() for image in images) == 400
    # Binomial: 200 +- 10; five standard deviations.
    assert abs(flipped - 200) < 50


def test_without_augmentation_nothing_is_drawn(tmp_path: Path) -> None:
    source = make_source(tmp_path, [1], caption_dropout=0.9, horizontal_flip=True)
    assert {source.load(number).caption for number in range(50)} == {"caption 0 0"}


def test_labels_are_read_and_dropped_to_the_null_class(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": IMAGE, "cls": f"{row}\n".encode()} for row in range(3)}
    source = make_source(
        tmp_path, [3], replaced=replaced, is_augmented=True, num_classes=10, caption_dropout=0.3
    )
    samples = [source.load(number) for number in range(300)]
    assert {sample.is_dropped for sample in samples} == {True, False}
    assert all(
        sample.label == (10 if sample.is_dropped else number % 3) and sample.caption == ""
        for number, sample in enumerate(samples)
    )


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"cls": b"10"}, "expected 0 to 9"),
        ({"cls": b"-1"}, "expected 0 to 9"),
        ({"cls": b"cat"}, "'cat'"),
        ({}, "no member .cls"),
    ],
)
def test_a_wrong_label_is_a_failure(tmp_path: Path, members: Members, reason: str) -> None:
    failed = make_source(tmp_path, [1], replaced={"0_0": {"png": IMAGE} | members}, num_classes=10).load(0)
    assert failed.failure is not None and failed.failure.kind == "label" and reason in failed.failure.reason
    assert failed.picture is None and failed.label == 10 and failed.is_dropped


def test_a_copy_in_another_process_opens_files_of_its_own(tmp_path: Path) -> None:
    source = make_source(tmp_path, [3])
    expected = source.load(2)
    copy = pickle.loads(pickle.dumps(source))
    assert not copy.files._descriptors.values and copy.load(2).key == expected.key


def test_the_first_of_several_images_in_the_list_of_suffixes_counts(tmp_path: Path) -> None:
    broken = make_sample(0, 0) | {"jpg": b"never read"}
    source = make_source(tmp_path, [1], replaced={"0_0": broken})
    assert source.load(0).failure is None


def test_a_sample_of_a_feature_set_without_features_is_a_failure(tmp_path: Path) -> None:
    made = FeatureSource(
        "a", "", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
    )
    sample = replace(make_source(tmp_path, [1]), features=FeatureSet(made)).load(0)
    assert sample.failure is not None and sample.failure.kind == "features"
    assert sample.failure.reason == "ValueError: no member .safetensors; the sample has png, txt"


@pytest.mark.parametrize("name", ["latents_VCHW", "tokens_LT", "pooled_KP"])
def test_features_that_are_not_finite_are_a_failure_and_named(tmp_path: Path, name: str) -> None:
    made = FeatureSource(
        "a", "t", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
    )
    text = CaptionFeatures(torch.ones(3, 4).bfloat16(), torch.ones(5).bfloat16())
    data = pack_sample(
        torch.ones(1, 1, 2, 2), [(text,)], [1.0], original=Size(4, 4), crop=(0, 0), precision="bf16"
    )
    tensors = safetensors.torch.load(data)
    tensors[name].view(-1)[-1] = float("nan")
    members = {"safetensors": data}, {"safetensors": safetensors.torch.save(tensors)}
    source = make_source(tmp_path, [2], replaced={"0_0": members[0], "0_1": members[1]})
    source = replace(source, features=FeatureSet(made, (text,)), is_augmented=False)
    found = {sample.key: sample for sample in (source.load(0), source.load(1))}
    assert found["shard-000.tar/0_0"].failure is None and found["shard-000.tar/0_0"].text
    failure = found["shard-000.tar/0_1"].failure
    assert (
        failure is not None and failure.kind == "features" and f"of {name} are inf or NaN" in failure.reason
    )
