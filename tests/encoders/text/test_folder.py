"""Folders of language models that do not fit: each is named, with what was expected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any  # values of JSON

import pytest
from safetensors.torch import load_file, save_file

from diffmoe_scale.encoders.text.build import build_text_encoder
from tests.encoders.text.language_models import config_of, copy, edit_config
from tests.encoders.text.texts import SHORT, encode, load_encoder


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def overwrite(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return overwrite


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: state[name] for name in state if "layers.1.mlp" not in name}, folder / "model.safetensors"
    )


def keep_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def name_missing_part(folder: Path) -> None:
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


PATH = r"text\.encoders\.0\.path is '[^']*model'; "
BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, PATH + r"expected a folder on this machine with config\.json"),
    "no config": (remove("config.json"), PATH + r"the folder has no config\.json"),
    "no weights": (remove("model.safetensors"), PATH + r"the folder has no model\.safetensors; expected"),
    "a pickle": (
        keep_pickle,
        PATH + r"the folder has no model\.safetensors \(pytorch_model\.bin is not read",
    ),
    "no tokenizer": (
        remove("tokenizer.json"),
        PATH + r"the folder has no tokenizer\.json; .* or text\.encoders\.0\.tokenizer set",
    ),
    "a part is missing": (name_missing_part, PATH + r"the folder has no part-1\.safetensors"),
    "a bad index": (
        write("model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}'),
        PATH + r"its model\.safetensors\.index\.json has no weight_map",
    ),
    "cut weights": (cut_weights, PATH + r"its model\.safetensors cannot be read as safetensors"),
    "no safetensors": (
        write("model.safetensors", b"x" * 99),
        PATH + r"its model\.safetensors cannot be read",
    ),
    "no JSON": (write("config.json", b"{"), PATH + r"its config\.json cannot be read"),
    "a list": (write("config.json", b"[]"), PATH + r"its config\.json cannot be read \(it holds a list\)"),
    "deep JSON": (write("config.json", b"[" * 100_000), PATH + r"its config\.json cannot be read"),
    "no type": (write("config.json", b"{}"), PATH + r"its config\.json has no model_type"),
    "another type": (
        edit_config(model_type="bert"),
        PATH + r".* describes a 'bert' model; expected one of t5,",
    ),
    "quantized": (edit_config(quantization_config={"bits": 4}), PATH + r"its weights are quantized"),
    "another architecture": (
        edit_config(model_type="gemma2"),
        PATH + r"its weights lack \d+ of \d+ tensors of a gemma2 model, such as layers",
    ),
    "a missing tensor": (drop_tensor, PATH + r"its weights lack 3 of 35 tensors .*layers\.1\.mlp"),
    "another width": (edit_config(hidden_size=48), PATH + r"its tensor .* has shape .*; expected"),
    "absurd width": (edit_config(hidden_size=-4), PATH + r"its config\.json describes no qwen3 model"),
    "width in words": (edit_config(hidden_size="wide"), PATH + r"its config\.json describes no qwen3 model"),
    "no heads": (edit_config(num_attention_heads=0), PATH + r"its config\.json makes no qwen3 model"),
    "small vocabulary": (
        edit_config(vocab_size=200),
        r"tokenizer .*tokenizer\.json has ids to \d+, but the model of .* has embeddings of 200",
    ),
    "damaged tokenizer": (write("tokenizer.json", b"{}"), r"tokenizer .*tokenizer\.json cannot be used"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_that_does_not_fit_is_named_with_what_was_expected(
    name: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    damage, message = BAD_FOLDERS[name]
    folder = copy(model_folders["qwen3"], tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        build_text_encoder(config_of(folder), tokenizer_path=Path("unused"))
    assert str(caught.value).count("\n") == 0


def test_weights_that_are_not_finite_are_named_when_they_are_read(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(model_folders["t5"], tmp_path)
    state = load_file(folder / "model.safetensors")
    state["encoder.block.1.layer.0.SelfAttention.v.weight"][3, 3] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=PATH + r"its model gives numbers that are not finite in fp32"):
        load_encoder(config_of(folder))


VALUES: list[Any] = [None, True, -1, 0, 1, 3, 7, 2**40, 1e308, float("nan"), "x", [], [1], {}, -0.5, 10**30]


@pytest.mark.slow
def test_any_config_json_is_a_value_error_or_gives_numbers(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    random, refused = Random(0), 0
    for kind in ("t5", "qwen3", "gemma3_text", "t5gemma"):
        folder = copy(model_folders[kind], tmp_path / kind)
        good = json.loads((folder / "config.json").read_text())
        for _ in range(60):
            settings = json.loads(json.dumps(good))
            part = settings["encoder"] if kind == "t5gemma" else settings
            part[random.choice(list(part))] = random.choice(VALUES)
            (folder / "config.json").write_text(json.dumps(settings))
            try:
                stream = encode(load_encoder(config_of(folder, max_tokens=16)), [SHORT, ""])
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 700, settings
                refused += 1
            else:
                assert stream.tokens_BLT.isfinite().all(), settings
    assert 60 < refused < 240


@pytest.mark.slow
def test_any_damage_to_a_tokenizer_is_a_value_error_or_gives_ids_of_the_model(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    random, refused = Random(0), 0
    for kind, name in (("t5", "spiece.model"), ("gemma", "tokenizer.json")):
        folder = copy(model_folders[kind], tmp_path / kind)
        good = (folder / name).read_bytes()
        for _ in range(120):
            damaged = bytearray(good)
            place = random.randrange(len(damaged))
            match random.randrange(3):
                case 0:
                    damaged[place] ^= 1 << random.randrange(8)
                case 1:
                    del damaged[place:]
                case 2:
                    damaged[place : place + 4] = random.randbytes(4)
            (folder / name).write_bytes(damaged)
            try:
                encoder = build_text_encoder(config_of(folder), tokenizer_path=Path("unused"))
            except ValueError:
                refused += 1
                continue
            assert encoder.tokenize([SHORT, "", "an \u00e9 \u57ce"]).max() < 330
    assert refused > 100
