"""Models whose captions are scenes, and others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.evaluation.captions import check_captions
from diffmoe_scale.scenes.scenes import draw_scene
from tests.data.samples import make_sample, write_shard

SCENES = [draw_scene(index, seed=0, level="easy").caption for index in range(400)]
OTHERS = ["a cat in the snow", "two people at a table", "the red car", "a circle of friends in a park"] * 50


def shard(path: Path, captions: Sequence[str]) -> Path:
    samples = {f"{row:04d}": make_sample(0, row) for row in range(len(captions))}
    for sample, caption in zip(samples.values(), captions, strict=True):
        sample["txt"] = caption.encode()
    write_shard(path, samples)
    return path


def check(train: str, tokenizer: Path, *settings: str) -> None:
    check_captions(load_config(None, [f"data.train=[{train}]", "text.vocabulary=600", *settings]), tokenizer)


def test_captions_of_scenes_pass_also_when_they_are_few_among_others(tmp_path: Path) -> None:
    check(str(shard(tmp_path / "a.tar", SCENES[:20])), tmp_path / "none")
    check(str(shard(tmp_path / "b.tar", [*OTHERS[:20], SCENES[0]])), tmp_path / "none")


def test_captions_of_other_pictures_are_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "[a].tar", OTHERS[:20])
    with pytest.raises(ValueError, match=r"none of 20 is, such as 'a cat in the snow'\), which the suites"):
        check(str(path.with_name("*a*.tar")), tmp_path / "none")


def test_without_shards_the_words_of_the_tokenizer_decide(tmp_path: Path) -> None:
    missing = str(tmp_path / "none-*.tar")
    train_tokenizer(SCENES, vocabulary=600, path=tmp_path / "scenes.model")
    check(missing, tmp_path / "scenes.model")
    train_tokenizer(OTHERS, vocabulary=600, path=tmp_path / "others.model")
    with pytest.raises(ValueError, match="this model's tokenizer has no word for"):
        check(missing, tmp_path / "others.model")


def test_what_cannot_be_known_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(str(tmp_path / "none-*.tar"), tmp_path / "none.model")
    assert "cannot be found out here" in caplog.text


def test_no_command_is_run_for_the_question(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    check(f"'pipe:touch {planted}; cat x.tar'", tmp_path / "none.model")
    assert not planted.exists()


def test_a_file_with_the_name_of_a_command_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "pipe:touch planted; cat a.tar", SCENES[:5])
    check("'*.tar'", tmp_path / "none.model")
    assert not (tmp_path / "planted").exists()
