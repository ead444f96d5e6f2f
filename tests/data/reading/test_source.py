import json
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.order.order import FixedOrder
from diffmoe_scale.data.reading.captions import choose
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.source import LONGEST_CAPTION, SampleSource
from diffmoe_scale.data.shards.catalog import ShardCatalog
from tests.data.samples import Members, color, encode, header_offset, make_sample, overwrite, write_shards

IMAGE = encode(Image.new("RGB", (4, 4), "red"))


def _source(
    folder: Path,
    counts: list[int],
    *,
    replaced: dict[str, Members] | None = None,
    is_augmented: bool = False,
    num_classes: int = 0,
    **settings: Any,
) -> SampleSource:
    catalog = ShardCatalog(write_shards(folder, counts, replaced=replaced))
    model = ModelConfig(
        image_size=4, conditioning="class" if num_classes else "text", num_classes=num_classes
    )
    config = DataConfig(**settings)
    return SampleSource(
        config=config,
        model=model,
        seed=0,
        catalog=catalog,
        files=ShardFiles(catalog),
        order=FixedOrder(catalog.counts),
        is_augmented=is_augmented,
    )


def test_a_number_gives_the_image_and_the_caption_of_its_place(tmp_path: Path) -> None:
    source = _source(tmp_path, [2, 3])
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
    source = _source(tmp_path, [3], replaced={"0_1": {"jpg": b"\xff\xd8\xff broken", "txt": b"caption"}})
    failed = source.load(1)
    assert failed.picture is None and failed.is_dropped and failed.caption == ""
    assert failed.failure is not None and (failed.failure.kind, failed.failure.key) == (
        "corrupt",
        "shard-000.tar/0_1",
    )
    assert [source.load(number).failure for number in (0, 2)] == [None, None]


def test_bytes_damaged_after_indexing_are_a_failure(tmp_path: Path) -> None:
    source = _source(tmp_path, [2])
    path = source.catalog.paths[0]
    overwrite(path, header_offset(path, "0_0.png") + 512, b"garbage!")
    assert source.load(0).failure is not None and source.load(1).failure is None


def test_a_shard_cut_off_after_indexing_gives_read_failures(tmp_path: Path) -> None:
    source = _source(tmp_path, [3])
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
    source = _source(tmp_path, [2, 2])
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


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": b" a red circle \n"}, ["a red circle"]),
        ({"txt": "grün".encode(), "json": b'{"caption": "second"}'}, ["grün"]),
        ({"json": b'{"caption": "from json", "other": 1}'}, ["from json"]),
        ({"json": json.dumps({"caption": ["one", " ", 3, None, "two"]}).encode()}, ["one", "two"]),
        ({"json": b'{"title": "no caption"}'}, []),
        ({"json": b'["no object"]'}, []),
        ({"json": b"{broken"}, []),
        ({"json": b"[" * 100_000}, []),
        ({"json": b"\xff\xfe\x00"}, []),
        ({"txt": b" \n "}, []),
        ({}, []),
    ],
)
def test_captions_come_from_txt_and_else_from_json(
    tmp_path: Path, members: Members, expected: list[str]
) -> None:
    source = _source(tmp_path, [1], replaced={"0_0": {"png": IMAGE} | members})
    sample = source.load(0)
    captions = source.files.captions(0, source.catalog.index(0).members(0), source.config.caption_weights)
    assert [text for text, _ in captions] == expected
    assert sample.caption == (
        expected[0] if expected else ""
    ) and sample.is_uncaptioned == sample.is_dropped == (not expected)
    assert sample.failure is None and sample.picture is not None


def test_of_several_captions_each_is_drawn_equally_often(tmp_path: Path) -> None:
    texts = ["one", "two", "three"]
    source = _source(
        tmp_path,
        [1],
        replaced={"0_0": {"png": IMAGE, "json": json.dumps({"caption": texts}).encode()}},
        is_augmented=True,
        caption_dropout=0.0,
    )
    drawn = [source.load(number).caption for number in range(900)]
    # Binomial: 300 +- 14; five standard deviations.
    assert all(abs(drawn.count(text) - 300) < 70 for text in texts)


def test_captions_are_drawn_by_the_weights_of_their_sources(tmp_path: Path) -> None:
    record = {"short": "short", "long": ["long one", "long two"], "unused": "unused", "fallback": "fallback"}
    members = {"png": IMAGE, "txt": b"text", "json": json.dumps(record).encode()}
    weights = {"txt": 1.0, "short": 1.0, "long": 2.0, "absent": 5.0, "fallback": 0.0}
    source = _source(
        tmp_path,
        [1],
        replaced={"0_0": members},
        is_augmented=True,
        caption_dropout=0.0,
        caption_weights=weights,
    )
    drawn = Counter(source.load(number).caption for number in range(1000))
    # Binomial: 250 +- 13.7; five standard deviations.
    assert drawn.keys() == {"text", "short", "long one", "long two"} and all(
        abs(count - 250) < 69 for count in drawn.values()
    )


def test_a_source_of_weight_0_is_read_where_no_other_has_a_caption(tmp_path: Path) -> None:
    replaced = {
        "0_0": {"png": IMAGE, "json": b'{"long": "long", "alt": "alt"}'},
        "0_1": {"png": IMAGE, "json": b'{"long": " ", "alt": "alt"}'},
    }
    source = _source(
        tmp_path,
        [2],
        replaced=replaced,
        is_augmented=True,
        caption_dropout=0.0,
        caption_weights={"long": 1.0, "alt": 0.0},
    )
    assert [{source.load(number).caption for number in range(row, 100, 2)} for row in (0, 1)] == [
        {"long"},
        {"alt"},
    ]


def test_a_draw_falls_into_a_weight() -> None:
    assert [choose([1.0, 0.0, 3.0], draw) for draw in (0.0, 0.2499, 0.25, 0.9999)] == [0, 0, 2, 2]
    assert choose([0.1] * 10, 1 - 2**-53) == 9


def test_a_caption_of_any_length_and_script_is_read(tmp_path: Path) -> None:
    text = "\N{CAT}\N{COMBINING ACUTE ACCENT} \u6f22\u5b57 \u0639\u0631\u0628\u064a "
    replaced = {
        "0_0": {"png": IMAGE, "txt": text.encode()},
        "0_1": {"png": IMAGE, "txt": (text * 10_000).encode()},
    }
    source = _source(tmp_path, [2], replaced=replaced)
    short, long = source.load(0), source.load(1)
    assert short.caption == text.strip() and short.notes == ()
    assert long.caption == (text * 10_000)[:LONGEST_CAPTION] and [note.kind for note in long.notes] == [
        "long_caption"
    ]


def test_captions_are_dropped_at_the_configured_rate(tmp_path: Path) -> None:
    source = _source(tmp_path, [1], is_augmented=True, caption_dropout=0.3)
    samples = [source.load(number) for number in range(1000)]
    # Binomial: 300 +- 14.5; five standard deviations.
    assert abs(sum(sample.is_dropped for sample in samples) - 300) < 73
    assert all(
        (sample.caption == "") == sample.is_dropped and not sample.is_uncaptioned for sample in samples
    )


def test_half_of_the_images_are_mirrored_when_asked_for(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:, :2] = 255
    replaced = {"0_0": {"png": encode(Image.fromarray(pixels)), "txt": b"left"}}
    source = _source(tmp_path, [1], replaced=replaced, is_augmented=True, horizontal_flip=True)
    images = [picture.pixels_HWC for number in range(400) if (picture := source.load(number).picture)]
    flipped = sum(image is not None and (image == pixels[:, ::-1]).all() for image in images)
    assert flipped + sum(image is not None and (image == pixels).all() for image in images) == 400
    # Binomial: 200 +- 10; five standard deviations.
    assert abs(flipped - 200) < 50


def test_without_augmentation_nothing_is_drawn(tmp_path: Path) -> None:
    source = _source(tmp_path, [1], caption_dropout=0.9, horizontal_flip=True)
    assert {source.load(number).caption for number in range(50)} == {"caption 0 0"}


def test_labels_are_read_and_dropped_to_the_null_class(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": IMAGE, "cls": f"{row}\n".encode()} for row in range(3)}
    source = _source(tmp_path, [3], replaced=replaced, is_augmented=True, num_classes=10, caption_dropout=0.3)
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
    failed = _source(tmp_path, [1], replaced={"0_0": {"png": IMAGE} | members}, num_classes=10).load(0)
    assert failed.failure is not None and failed.failure.kind == "label" and reason in failed.failure.reason
    assert failed.picture is None and failed.label == 10 and failed.is_dropped


def test_a_copy_in_another_process_opens_files_of_its_own(tmp_path: Path) -> None:
    source = _source(tmp_path, [3])
    expected = source.load(2)
    copy = pickle.loads(pickle.dumps(source))
    assert not copy.files._descriptors.values and copy.load(2).key == expected.key


def test_the_first_of_several_images_in_the_list_of_suffixes_counts(tmp_path: Path) -> None:
    broken = make_sample(0, 0) | {"jpg": b"never read"}
    source = _source(tmp_path, [1], replaced={"0_0": broken})
    assert source.load(0).failure is None


def test_a_sample_of_a_feature_set_without_features_is_a_failure(tmp_path: Path) -> None:
    made = FeatureSource(
        "a", "", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
    )
    sample = replace(_source(tmp_path, [1]), features=FeatureSet(made, None)).load(0)
    assert sample.failure is not None and sample.failure.kind == "features"
    assert sample.failure.reason == "ValueError: no member .safetensors; the sample has png, txt"


def test_odd_captions_are_read_cleaned_and_noted(tmp_path: Path) -> None:
    texts = ["hello there".encode("utf-16"), "caf\u00e9".encode("cp1252"), b"\xef\xbb\xbfa house", b"a\0b"]
    replaced = {
        f"0_{row}": {"png": make_sample(0, row)["png"], "txt": text} for row, text in enumerate(texts)
    }
    half = b'{"caption": "an emoji cut in half \\ud83d"}'
    replaced["0_4"] = {"png": make_sample(0, 4)["png"], "txt": b" ", "json": half}
    source = replace(_source(tmp_path, [5], replaced=replaced), is_augmented=False)
    samples = [source.load(number) for number in range(5)]
    found = {
        sample.key.split("/")[1]: (sample.caption, [note.kind for note in sample.notes]) for sample in samples
    }
    assert found == {
        "0_0": ("hello there", ["byte_order_mark"]),
        "0_1": ("caf\u00e9", ["not_utf8"]),
        "0_2": ("a house", ["byte_order_mark"]),
        "0_3": ("ab", ["nuls"]),
        "0_4": ("an emoji cut in half \ufffd", ["half_pair"]),
    }


@pytest.mark.parametrize("name", ["latents_VCHW", "tokens_LT", "pooled_KP"])
def test_features_that_are_not_finite_are_a_failure_and_named(tmp_path: Path, name: str) -> None:
    made = FeatureSource(
        "a", "t", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
    )
    text = CaptionFeatures(torch.ones(3, 4).bfloat16(), torch.ones(5).bfloat16())
    data = pack_sample(
        torch.ones(1, 1, 2, 2), [text], [1.0], original=Size(4, 4), crop=(0, 0), precision="bf16"
    )
    tensors = safetensors.torch.load(data)
    tensors[name].view(-1)[-1] = float("nan")
    members = {"safetensors": data}, {"safetensors": safetensors.torch.save(tensors)}
    source = _source(tmp_path, [2], replaced={"0_0": members[0], "0_1": members[1]})
    source = replace(source, features=FeatureSet(made, text), is_augmented=False)
    found = {sample.key: sample for sample in (source.load(0), source.load(1))}
    assert found["shard-000.tar/0_0"].failure is None and found["shard-000.tar/0_0"].text is not None
    failure = found["shard-000.tar/0_1"].failure
    assert (
        failure is not None and failure.kind == "features" and f"of {name} are inf or NaN" in failure.reason
    )
