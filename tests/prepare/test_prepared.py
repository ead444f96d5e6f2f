"""What a preparation says of itself, on a terminal and in its manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.prepared import SHARDS_FILE, Prepared, read_prepared


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
    *_, look, train = make(Path("set [v1]")).lines()
    assert "--input 'set [[]v1]/*.tar'" in look and "'data.train=[set [[]v1]/train-*.tar]'" in train


@pytest.mark.parametrize("part", ["left_out", "unused", "notes"])
def test_whatever_is_named_says_where_all_of_it_stands(tmp_path: Path, part: str) -> None:
    place = f"all of it: {tmp_path / SHARDS_FILE}"
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
    assert json.loads(text)["skipped"] == ["a.png", "b.png"]
    (tmp_path / SHARDS_FILE).write_text(text, encoding="utf-8")
    again = read_prepared(tmp_path)
    assert not again.is_new and again.images == made.images and again.counts == made.counts
    for name in ("left_out", "unused", "notes", "class_names", "class_samples"):
        assert getattr(again, name) == getattr(made, name), name
