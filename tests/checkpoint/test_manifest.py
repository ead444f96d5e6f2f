import json
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import (
    Manifest,
    StoredFile,
    check_model,
    complete_checkpoints,
    describe_file,
    find_damage,
    read_manifest,
    write_manifest,
)
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import load_config

MANIFEST = Manifest(
    step=3,
    samples=24,
    optimizer_steps=2,
    settings={"moe": {"capacity": 0.1}},
    shapes={"master/w": [3, 4]},
    files={".metadata": StoredFile(size=1, sha256="0" * 64)},
)


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    write_manifest(path, MANIFEST)
    return path


def edit(checkpoint: Path, **fields: object) -> None:
    tree = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(tree | fields))


def test_manifest_comes_back_with_its_check_sum(tmp_path: Path) -> None:
    loaded = read_manifest(make_checkpoint(tmp_path, 3))
    assert {**vars(loaded), "checksum": ""} == vars(MANIFEST) and len(loaded.checksum) == 64


def test_edited_manifest_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    edit(path, samples=25)
    with pytest.raises(
        ValueError, match=f"manifest.json of {path} has another check sum than when it was written"
    ):
        read_manifest(path)


def test_manifest_without_a_check_sum_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    tree = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    del tree["checksum"]
    (path / "manifest.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ValueError, match="another check sum"):
        read_manifest(path)


def sign(tree: Mapping[str, object]) -> str:
    """The manifest with a check sum that fits, as whoever makes one up would give it."""
    others = {name: value for name, value in tree.items() if name != "checksum"}
    digest = sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
    return json.dumps(others | {"checksum": digest})


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"x"', "", "{", "[" * 100_000, '{"schema": 1}', '{"schema": "1"}', "\0"]
)
def test_manifest_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = make_checkpoint(tmp_path, 3)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=str(path)):
        read_manifest(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"step": 3.0},
        {"step": 2**64},
        {"samples": None},
        {"shapes": {"w": "3"}},
        {"shapes": [1]},
        {"files": {"../evil": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"a": {"size": 1}}},
        {"files": {"a": []}},
        {"settings": []},
        {"guard": 3},
        {"samples_by_bucket": {"1": -5}},
    ],
    ids=str,
)
def test_fields_of_wrong_types_are_refused_by_name(tmp_path: Path, fields: dict[str, object]) -> None:
    path = make_checkpoint(tmp_path, 3)
    tree = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(sign(tree), encoding="utf-8")
    read_manifest(path)
    (path / "manifest.json").write_text(sign(tree | fields), encoding="utf-8")
    with pytest.raises(ValueError, match=next(iter(fields))):
        read_manifest(path)


def test_folder_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3).rename(tmp_path / "step_00000009")
    with pytest.raises(ValueError, match="holds step 3: the folder was renamed"):
        read_manifest(path)


def test_a_folder_that_cannot_be_listed_is_not_the_same_as_none(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path / "missing") == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError):
        complete_checkpoints(tmp_path / "file")


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"schema": 2}, "has schema 2; this version reads schema 1"),
        ({"schema": 1, "stepp": 3}, "has other fields than this version writes .*stepp"),
    ],
    ids=["another schema", "an unknown field"],
)
def test_manifest_of_another_version_is_refused(tmp_path: Path, tree: dict[str, int], sentence: str) -> None:
    path = make_checkpoint(tmp_path, 3)
    (path / "manifest.json").write_text(sign(tree), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        read_manifest(path)


def test_folders_with_a_manifest_are_complete_and_ordered_by_step(tmp_path: Path) -> None:
    paths = [make_checkpoint(tmp_path, step) for step in (9, 99_999_999, 100_000_000)]
    make_checkpoint(tmp_path, 10).rename(tmp_path / "step_00000010.tmp")
    (tmp_path / "step_00000011").mkdir()
    assert complete_checkpoints(tmp_path) == paths and complete_checkpoints(tmp_path / "missing") == []


def test_manifest_without_the_table_of_tensors_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(MANIFEST, files={}))
    with pytest.raises(ValueError, match=r"has no check sum of \.metadata"):
        read_manifest(tmp_path)


def test_pipe_in_place_of_the_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match=r"it has no file manifest\.json"):
        read_manifest(tmp_path)


def test_damaged_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    names = ["flipped", "link", "long", "missing", "whole"]
    for name in names:
        (tmp_path / name).write_bytes(b"data")
    manifest = Manifest(
        step=1, samples=1, optimizer_steps=1, files={name: describe_file(tmp_path / name) for name in names}
    )
    (tmp_path / "flipped").write_bytes(b"dat`")
    (tmp_path / "long").write_bytes(b"data!")
    (tmp_path / "missing").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "whole")  # the right bytes, but of another place
    assert find_damage(tmp_path, manifest, names) == [
        "flipped has another check sum than when it was written",
        "link is a link; expected a file of the checkpoint",
        "long has 5 bytes instead of 4",
        "missing is missing",
    ]


def test_other_tensors_without_another_setting_are_refused() -> None:
    check_model(Path("run"), MANIFEST, {"master/w": [3, 4]}, MANIFEST.settings)
    with pytest.raises(
        ValueError,
        match=r"Settings that differ: none\. .* 1 tensor of other shape, such as "
        r"master/w is \[3, 4\] there and missing here$",
    ):
        check_model(Path("run"), MANIFEST, {}, MANIFEST.settings)


def test_another_setting_with_equal_tensors_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"another model. Settings that differ: moe\.\w+ was .* All tensors have the same"
    ):
        check_model(
            Path("run"),
            MANIFEST,
            {"master/w": [3, 4]},
            {"moe": {name: "another" for name in MANIFEST.settings["moe"]}},
        )


def test_a_setting_that_an_older_manifest_does_not_state_had_its_default() -> None:
    settings = {
        section: dict(entries)
        for section, entries in model_settings(load_config(None), tokenizer=Path(), frozen={}).items()
    }
    older = replace(MANIFEST, settings={"moe": {"num_experts": settings["moe"]["num_experts"]}})
    check_model(Path("run"), older, {"master/w": [3, 4]}, settings)
    for section, key in (("moe", "router"), ("model", "depth"), ("diffusion", "kind")):
        before = settings[section][key]
        changed = settings | {section: settings[section] | {key: "another"}}
        with pytest.raises(ValueError, match=f"differ: {section}.{key} was {before!r}, is 'another'"):
            check_model(Path("run"), older, {"master/w": [3, 4]}, changed)
    check_model(Path("run"), replace(MANIFEST, settings={}), {"master/w": [3, 4]}, changed)
    newer = replace(MANIFEST, settings={"unknown": {"key": 1}})
    with pytest.raises(ValueError, match=r"differ: unknown\.key was 1, is None"):
        check_model(Path("run"), newer, {"master/w": [3, 4]}, settings)
