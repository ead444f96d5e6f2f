"""Folders of language models that do not fit: each is named, with what was expected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffmoe_scale.encoders.text.build import build_text_encoder
from tests.encoders.text.language_models import config_of, copy, edit_config


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
