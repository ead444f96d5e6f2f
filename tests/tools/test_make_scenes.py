import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.scenes.scenes import Split, draw_scene
from diffmoe_scale.scenes.shapes import render
from tests.data.samples import read_batches
from tools import make_scenes


def _make(
    output: Path, *, train: int = 5, validation: int = 2, seed: int = 7, options: tuple[str, ...] = ()
) -> int:
    return make_scenes.main(
        [
            "--output",
            str(output),
            "--train",
            str(train),
            "--validation",
            str(validation),
            "--seed",
            str(seed),
            *options,
        ]
    )


def _read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            name: file.read()
            for name in archive.getnames()
            if (file := archive.extractfile(name)) is not None
        }


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_hold_picture_caption_and_claims(tmp_path: Path, split: Split) -> None:
    assert _make(tmp_path / "out", train=3, validation=3) == 0
    members = _read(tmp_path / "out" / f"{split}-000000.tar")
    assert len(members) == 9
    for index in range(3):
        scene, key = draw_scene(index, seed=7, level="easy", split=split), f"{split}-{index:08d}"
        assert (np.asarray(Image.open(io.BytesIO(members[f"{key}.png"]))) == render(scene.objects, 32)).all()
        assert (
            members[f"{key}.txt"].decode() == scene.caption
            and json.loads(members[f"{key}.json"]) == scene.metadata
        )


def test_level_and_resolution_reach_the_pictures(tmp_path: Path) -> None:
    _make(tmp_path / "out", options=("--level", "full", "--resolution", "48"))
    picture = _read(tmp_path / "out" / "train-000000.tar")["train-00000001.png"]
    assert (
        np.asarray(Image.open(io.BytesIO(picture))) == render(draw_scene(1, seed=7, level="full").objects, 48)
    ).all()


def test_training_reads_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_scenes, "SHARD_SAMPLES", 2)
    _make(tmp_path / "out")
    reader = build_reader(
        DataConfig(caption_dropout=0.0),
        [f"{tmp_path}/out/train-*.tar"],
        model=ModelConfig(image_size=32),
        seed=0,
    )
    batch = next(read_batches(reader, global_batch=5, micro_batch=5))
    assert reader.catalog.counts == [2, 2, 1] and reader.catalog.problems == {}
    assert set(batch.captions) == {draw_scene(index, seed=7, level="easy").caption for index in range(5)}


def test_no_samples_make_no_shard(tmp_path: Path) -> None:
    assert _make(tmp_path / "out", validation=0) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        make_scenes.SCENES_FILE,
        "train-000000.tar",
        "train-000000.tar.index.npz",
    ]


def test_a_second_call_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make(tmp_path / "out")
    written = (tmp_path / "out" / "train-000000.tar").stat()
    assert _make(tmp_path / "out") == 0 and "there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "train-000000.tar").stat() == written


def test_other_scenes_are_replaced_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _make(tmp_path / "out")
    before = _read(tmp_path / "out" / "train-000000.tar")
    assert _make(tmp_path / "out", seed=8) == 2 and "--overwrite" in capsys.readouterr().err
    assert _read(tmp_path / "out" / "train-000000.tar") == before
    assert (
        _make(tmp_path / "out", seed=8, options=("--overwrite",)) == 0
        and _read(tmp_path / "out" / "train-000000.tar") != before
    )


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    _make(tmp_path / "1")
    _make(tmp_path / "2")
    assert (tmp_path / "1" / "train-000000.tar").read_bytes() == (
        tmp_path / "2" / "train-000000.tar"
    ).read_bytes()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("draft")
    assert (
        _make(tmp_path, options=("--overwrite",)) == 2 and "holds no scenes.json" in capsys.readouterr().err
    )
    assert (tmp_path / "thesis.txt").read_text() == "draft"


def test_an_interrupted_call_leaves_no_folder_and_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_scenes, "render", interrupted)
    assert _make(tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert _make(tmp_path / "out") == 0 and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_name_with_a_percent_sign_is_only_a_name(tmp_path: Path) -> None:
    assert _make(tmp_path / "50%d") == 0 and (tmp_path / "50%d" / "train-000000.tar").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--train", "0"), ("--validation", "-1"), ("--resolution", "16"), ("--seed", "-1")]
)
def test_a_wrong_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert _make(tmp_path / "out", options=(option, value)) == 2
    captured = capsys.readouterr().err
    assert (
        captured.startswith(f"error: {option} is {value}; expected at least")
        and captured.count("\n") == 1
        and not (tmp_path / "out").exists()
    )
