"""What a preparation says of itself, on a terminal and in its manifest."""

import glob
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from diffmoe_scale.config.load import parse_override
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.prepared import SHARDS_FILE, Prepared, read_prepared, shards_setting


def losses(*names: str, kind: str = "broken") -> Losses:
    found = Losses()
    for name in names:
        found.add(kind, name)
    return found


def make(
    output: Path,
    *,
    validation: int = 0,
    left_out: Losses | None = None,
    unused: Losses | None = None,
    notes: Losses | None = None,
    class_names: Sequence[str] = (),
    class_samples: Mapping[str, Sequence[int]] | None = None,
) -> Prepared:
    return Prepared(
        output,
        is_new=True,
        images=9,
        counts={"train": 7, "validation": validation, "uncaptioned": 1},
        left_out=left_out or Losses(),
        unused=unused or Losses(),
        notes=notes or Losses(),
        class_names=class_names,
        class_samples=class_samples or {},
    )


def test_the_next_command_names_validation_shards_only_where_there_are_some(tmp_path: Path) -> None:
    *_, without = make(tmp_path).lines()
    assert "validation" not in without
    *_, held_out = make(tmp_path, validation=2).lines()
    assert (
        f"'data.train=[{tmp_path}/train-*.tar]' 'data.validation=[{tmp_path}/validation-*.tar]'" in held_out
    )


def test_patterns_of_a_folder_with_brackets_are_of_that_folder() -> None:
    *_, look, _ = make(Path("set [v1]")).lines()
    assert "--input 'set [[]v1]/*.tar'" in look


@pytest.mark.parametrize("name", ["plain", "set [v1]", "it's", "a, b: c", '"quoted"', "größe"])
def test_the_printed_setting_goes_through_a_shell_into_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    shard = tmp_path / name / "train-000000.tar"
    shard.touch()
    (word,) = shlex.split(shards_setting("data.train", tmp_path / name, "train-*.tar"))
    section, key, (pattern,) = parse_override(word)
    assert (section, key) == ("data", "train") and glob.glob(pattern) == [str(shard)]


@pytest.mark.parametrize("part", ["left_out", "unused", "notes"])
def test_whatever_is_named_says_where_all_of_it_stands(tmp_path: Path, part: str) -> None:
    place = f"more names, up to 1,000 of each kind: {tmp_path / SHARDS_FILE}"
    assert place not in list(make(tmp_path).lines())
    lines = list(make(tmp_path, **{part: losses("a.png")}).lines())  # type: ignore[arg-type]
    assert place in lines and "  a.png" in lines


def test_a_finished_set_is_read_back_from_its_manifest(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        validation=2,
        left_out=losses("a.png", "b.png"),
        unused=losses("c.tar", kind="tar beside pictures"),
        notes=losses("d.png", kind="animation"),
        class_names=["cat", "dog"],
        class_samples={"train": [3, 4], "validation": [1, 1]},
    )
    classes = [{"label": label, "name": name} for label, name in enumerate(made.class_names)]
    text = json.dumps(made.manifest() | {"classes": classes})
    assert json.loads(text)["left_out_names"]["broken"]["names"] == ["a.png", "b.png"]
    (tmp_path / SHARDS_FILE).write_text(text, encoding="utf-8")
    again = read_prepared(tmp_path)
    assert not again.is_new and again.images == made.images and again.counts == made.counts
    for name in ("left_out", "unused", "notes", "class_names", "class_samples"):
        assert getattr(again, name) == getattr(made, name), name
