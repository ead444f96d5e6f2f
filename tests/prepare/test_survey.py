"""What a survey of shards counts, beside tests/tools/test_inspect_data.py."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.prepare.survey import Survey, survey_shards
from diffmoe_scale.unicode import CONTROL, NULS, TEXT_NOTES
from tests.data.samples import make_sample, write_shard, write_shards

WEIGHTS = {"txt": 1.0}


def look(paths: list[Path], *, limit: int = 1000, caption_weights: Mapping[str, float] = WEIGHTS) -> Survey:
    survey, steps = survey_shards(ShardCatalog(paths), limit=limit, caption_weights=caption_weights)
    for _ in steps:
        pass
    return survey


def test_a_shard_without_a_sample_is_a_loss_with_its_name(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 0])
    lost = look(paths).lost
    assert lost.names["shard without a sample"] == [paths[1].name]


def test_what_both_tools_left_out_is_read_from_their_manifests(tmp_path: Path) -> None:
    entry = {"broken": {"count": 2, "names": ["a", "b"]}}
    (tmp_path / "shards.json").write_text(json.dumps({"left_out_names": entry, "unused": entry}))
    (tmp_path / "features.json").write_text(json.dumps({"left_out": entry}))
    paths = write_shards(tmp_path, [2])
    left_out = look(paths).left_out
    assert {name: losses.counts["broken"] for name, losses in left_out.items()} == {
        "shards.json": 4,
        "features.json": 2,
    }
    (tmp_path / "other").mkdir()
    both = look([*paths, *write_shards(tmp_path / "other", [1])]).left_out
    assert set(both) == {str(tmp_path / "shards.json"), str(tmp_path / "features.json")}


def test_names_of_classes_that_two_folders_do_not_share_are_left_out(tmp_path: Path) -> None:
    paths = []
    for folder, name in (("a", "cat"), ("b", "dog")):
        (tmp_path / folder).mkdir()
        manifest = {"classes": [{"label": 0, "folder": folder, "name": name}]}
        (tmp_path / folder / "shards.json").write_text(json.dumps(manifest))
        paths += write_shards(tmp_path / folder, [1])
    assert look(paths[:1]).class_names == {0: "cat"}
    assert look(paths).class_names == {}


def test_samples_are_spread_evenly_and_the_shown_ones_over_those(tmp_path: Path) -> None:
    samples = {f"{number:03d}": make_sample(0, number) for number in range(96)}
    for number, sample in enumerate(samples.values()):
        sample["txt"] = str(number).encode()
    path = tmp_path / "a.tar"
    write_shard(path, samples)
    found = look([path], limit=48)
    assert [int(caption) for caption in found.captions] == list(range(0, 96, 2))
    assert [int(caption) for _, caption in found.shown] == list(range(0, 96, 4))


def test_a_note_about_a_text_is_counted_once_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    sample = make_sample(0, 0) | {"txt": b"a\x00b", "json": b"[1]"}
    write_shard(path, {"0": sample, "1": make_sample(0, 1) | {"cls": b"9" * 5 + b"x" * 100}})
    found = look([path])
    assert found.texts.counts["json that is no object"] == 1
    assert all(count == 1 for count in found.texts.counts.values())
    (label,) = found.broken.names["label that is no number"]
    assert len(label) < 60


def test_what_is_odd_about_captions_of_any_field_and_in_lists_is_noted(tmp_path: Path) -> None:
    record = {"caption": ["good", "a\0b"], "long": "c\x07d", "other": "\x07"}
    write_shard(tmp_path / "a.tar", {"0": make_sample(0, 0) | {"json": json.dumps(record).encode()}})
    assert look([tmp_path / "a.tar"]).texts.counts == {TEXT_NOTES[NULS]: 1}
    both = look([tmp_path / "a.tar"], caption_weights={"long": 1.0}).texts.counts
    assert both == {TEXT_NOTES[NULS]: 1, TEXT_NOTES[CONTROL]: 1}
