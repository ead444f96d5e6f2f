"""Folders that are damaged, incomplete or changed, targets that exist: refused with what is wrong, and
nothing left behind."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any  # JSON trees

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffmoe_scale.checkpoint import tensor_file
from diffmoe_scale.convert import pipeline
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.inspect import inspect, open_any
from diffmoe_scale.convert.pipeline_import import open_folder
from tests.convert.pipelines import TEXT, draw_weights, write_pipeline
from tests.encoders.autoencoder.models import model_of_kind
from tests.encoders.text.language_models import write_model
from tools.convert_checkpoint import main

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "whole"
    write_pipeline(draw_weights(TEXT, tokenizer), folder)
    return folder


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> Change:
    def apply(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file(state, folder / file, metadata={"format": "pt"})

    return apply


def change_json(file: str, change: Callable[[Any], object]) -> Change:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / file).read_text())
        change(tree)
        (folder / file).write_text(json.dumps(tree))

    return apply


def cut(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-9])


def drop(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


STACK = "blocks.1.feed_forward.experts.w_in.weight"
WRONG: dict[str, tuple[Change, str]] = {
    "missing tensor": (
        change_tensors(lambda state: state.pop("blocks.0.attention.qkv.weight")),
        r"transformer.blocks.0.attention.qkv.weight is missing there and \(96, 32\)",
    ),
    "missing tensor of the text encoder": (
        change_tensors(
            lambda state: state.pop("final_norm.bias"), "text_encoder/diffusion_pytorch_model.safetensors"
        ),
        "text_encoder.final_norm.bias is missing there",
    ),
    "left over": (
        change_tensors(lambda state: state.update(more=torch.zeros(2))),
        r"transformer.more is \(2,\) there and missing",
    ),
    "an expert less": (
        change_tensors(lambda state: state.update({STACK: state[STACK][:3].clone()})),
        r"experts.3.w_in is missing there",
    ),
    "another shape": (
        change_tensors(lambda state: state.update({"final_projection.bias": torch.zeros(7)})),
        r"transformer.final_projection.bias is \(7,\) there and \(48,\)",
    ),
    "truncated weights": (cut(WEIGHTS), "is damaged: it has"),
    "no weights": (drop(WEIGHTS), "transformer is not complete: it has neither"),
    "no pieces": (drop("tokenizer/spiece.model"), "tokenizer is not complete: spiece.model is missing"),
    "no config": (drop("transformer/config.json"), "config.json is missing"),
    "no JSON": (cut("diffmoe_scale.json"), "diffmoe_scale.json is no JSON"),
    "another schema": (change_json("diffmoe_scale.json", lambda tree: tree.update(schema=9)), "schema 9"),
    "no settings": (
        change_json("diffmoe_scale.json", lambda tree: tree["metadata"].pop("settings")),
        "KeyError: 'settings'",
    ),
    "no metadata": (change_json("diffmoe_scale.json", lambda tree: tree.pop("metadata")), "KeyError"),
    "another number of heads": (
        change_json("transformer/config.json", lambda tree: tree.update(heads=4)),
        "config.json: heads is 4; expected 2",
    ),
    "another gate": (
        change_json("transformer/config.json", lambda tree: tree["experts"].update(gate="sigmoid")),
        "config.json: experts is .*sigmoid",
    ),
    "thresholds of no block": (
        change_json("transformer/config.json", lambda tree: tree["experts"].update(thresholds=[])),
        "has thresholds or biases of 0 blocks; expected 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_not_what_it_says_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    change, said = WRONG[name]
    folder = Path(shutil.copytree(whole, tmp_path / "folder"))
    change(folder)
    with pytest.raises(ValueError, match=said):
        convert(folder, tmp_path / "a.safetensors", Options())
    assert os.listdir(tmp_path) == ["folder"]


def test_a_shard_that_is_missing_or_cut_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    write_pipeline(draw_weights(TEXT, tokenizer), tmp_path / "a", shard_gib=40_000 / 2**30)
    shard = sorted((tmp_path / "a" / "transformer").glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    with pytest.raises(ValueError, match="is damaged: it has"):
        open_folder(tmp_path / "a")
    shard.unlink()
    with pytest.raises(ValueError, match=f"is not complete: {shard.name} is missing"):
        open_folder(tmp_path / "a")


def test_code_that_was_changed_is_named_and_not_run(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "folder"))
    (code,) = (folder / "transformer").glob("*.py")
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "a.safetensors", Options())
    assert f"{code.name} was changed after it was written" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_a_target_that_exists_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    assert main([str(run), str(tmp_path / "a"), "--to", "diffusers"]) == 2
    assert "exists; nothing is overwritten" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "a") and os.listdir(tmp_path) == ["a"]


def test_a_failure_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "a"))

    monkeypatch.setattr(tensor_file.os, "fsync", fail)
    assert main([str(run), str(tmp_path / "a"), "--to", "diffusers"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_folder_that_answers_otherwise_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = pipeline.write_tensors

    def write_wrong(path: Path, tensors: dict[str, tensor_file.LazyTensor], metadata: dict[str, str]) -> None:
        name = "patch_embedding.weight"
        write(path, {**tensors, name: tensors[name].map(lambda tensor: tensor * 1.01)}, metadata)

    monkeypatch.setattr(pipeline, "write_tensors", write_wrong)
    assert main([str(run), str(tmp_path / "a"), "--to", "diffusers"]) == 1
    assert "the converted model's output (ema) differs by" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_options_of_folders_alone_are_refused_elsewhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--experts", "separate"], ["--link"]):
        assert main([str(run), str(tmp_path / "a.safetensors"), *words]) == 2
        assert "without --to diffusers" in capsys.readouterr().err


def test_a_folder_comes_back_where_the_frozen_networks_are_gone(tmp_path: Path, tokenizer: Path) -> None:
    """They are those of the folder then."""
    model_of_kind("flux").save_pretrained(tmp_path / "vae")
    encoder = write_model("t5", tmp_path / "encoder")
    settings = [
        "model.conditioning=text",
        "model.num_classes=0",
        "autoencoder.kind=diffusers",
        f"autoencoder.path={tmp_path / 'vae'}",
        "model.channels=16",
        "model.image_size=32",
        f"text.encoders=[{{kind: transformers, path: '{encoder}', max_tokens: 8}}]",
    ]
    write_pipeline(draw_weights(settings, tokenizer), tmp_path / "a")
    shutil.rmtree(tmp_path / "vae")
    shutil.rmtree(encoder)
    convert(tmp_path / "a", tmp_path / "a.safetensors", Options())
    config = open_folder(tmp_path / "a").config
    assert config.autoencoder.path == str(tmp_path / "a" / "vae")
    assert config.text.encoders[0].path == str(tmp_path / "a" / "text_encoder")
    convert(tmp_path / "a", tmp_path / "again", Options(to="diffusers"))


def test_a_folder_is_inspected(whole: Path) -> None:
    found = inspect(open_any(whole))
    assert found["kind"] == "diffusers folder of this program" and found["step"] == 7
    assert len(found["thresholds"]) == 1
