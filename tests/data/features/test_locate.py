"""Files that say what made a set's features: what is no such file, and what is damaged."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffmoe_scale.data.features.locate import SetFile, _is_safetensors, load_feature_set, set_file
from diffmoe_scale.data.features.source import SET_FILE
from tests.data.features.test_source import SOURCE


def write(folder: Path, tensors: dict[str, torch.Tensor], **stated: object) -> SetFile:
    metadata = {"source": json.dumps(asdict(SOURCE) | stated)}
    (folder / SET_FILE).write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    return set_file(folder / "x.tar")


def test_features_of_a_command_have_no_file_to_fetch() -> None:
    with pytest.raises(ValueError, match=r"pipe:cat x gives features, but a command names no folder"):
        load_feature_set(SetFile("pipe:cat x", None))


def test_a_file_with_more_than_is_known_is_of_another_version(tmp_path: Path) -> None:
    load_feature_set(write(tmp_path, {}))
    with pytest.raises(ValueError, match="made by another version"):
        load_feature_set(write(tmp_path, {}, new_field=1))


@pytest.mark.parametrize(
    "stated",
    [
        {"aspects": None},
        {"aspects": 5},
        {"aspects": [1.0, "wide"]},
        {"aspects": [0.5, -1.0]},
        {"aspects": [float("nan")]},
        {"text": 5},
        {"autoencoder": None},
        {"precision": "fp16"},
        {"precision": ["bf16"]},
        {"channels": "3"},
        {"channels": True},
        {"channels": 0},
        {"factor": 0},
        {"image_size": 1.5},
        {"num_views": 3},
        {"step": -8},
        {"teacher": "0123456789abcdef", "teacher_width": 8, "teacher_patch": 0},
    ],
    ids=str,
)
def test_values_of_another_kind_are_damage(tmp_path: Path, stated: dict[str, object]) -> None:
    """Not a traceback, and not an error of the first batch."""
    (name, *_) = stated
    with pytest.raises(ValueError, match=f"damaged: {'teacher_patch' if 'teacher' in stated else name} is"):
        load_feature_set(write(tmp_path, {}, **stated))


def test_tensors_that_belong_to_no_encoder_are_damage(tmp_path: Path) -> None:
    for tensors in ({"weights": torch.zeros(1)}, {"pooled_P": torch.zeros(1)}):
        with pytest.raises(ValueError, match=f"damaged .*it holds {next(iter(tensors))}"):
            load_feature_set(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("data", "is_one"),
    [
        (b"", False),
        (b"<html>not here</html>", False),
        ((100).to_bytes(8, "little") + b"{" + b" " * 100, True),
        ((1000).to_bytes(8, "little") + b"{" + b" " * 100, False),
        ((100).to_bytes(8, "little") + b"[" + b" " * 100, False),
    ],
)
def test_a_server_s_answer_to_everything_is_no_such_file(tmp_path: Path, data: bytes, is_one: bool) -> None:
    (tmp_path / "answer").write_bytes(data)
    assert _is_safetensors(tmp_path / "answer") == is_one
