"""Folders that hold no autoencoder, or not all of one: each is refused with a sentence."""

import json
import os
import shutil
from pathlib import Path
from typing import Any  # values of any type in a config.json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffmoe_scale.encoders.autoencoder.diffusers import load_autoencoder
from tests.encoders.autoencoder.models import (
    CPU,
    FORMATS,
    build,
    config_of,
    model_of_kind,
    tiny_model,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kl")
    tiny_model(scaling_factor=1.5, shift_factor=0.25).save_pretrained(path)
    return path


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_missing_folder_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*absent.*config\.json"):
        build(tmp_path / "absent")


@pytest.mark.parametrize("kind", FORMATS)
def test_folder_without_weights_is_an_error_that_names_the_file(kind: str, tmp_path: Path) -> None:
    model_of_kind(kind).save_config(tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*diffusion_pytorch_model\.safetensors"):
        load_autoencoder(config_of(kind, tmp_path), device=CPU)


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_of_another_architecture_are_an_error(kind: str, tmp_path: Path) -> None:
    other = "flux" if kind != "flux" else "dc"
    model_of_kind(kind).save_pretrained(tmp_path / "one")
    model_of_kind(other).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, tmp_path / "one" / WEIGHTS)
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; loading says: "):
        load_autoencoder(config_of(kind, tmp_path / "one"), device=CPU)


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_weights_are_an_error_that_counts_them(kind: str, tmp_path: Path) -> None:
    model_of_kind(kind).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    names = [name for name in weights if name.startswith("decoder.")][-2:]
    save_file({name: weight for name, weight in weights.items() if name not in names}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; .*it lacks 2 weights, the first is dec"):
        load_autoencoder(config_of(kind, tmp_path), device=CPU)


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_without_a_place_are_an_error_that_counts_them(kind: str, tmp_path: Path) -> None:
    model_of_kind(kind).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS) | {"decoder.odd.weight": torch.zeros(2)}
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"it has 1 weight without a place .*, the first is decoder\.odd\.weight"
    ):
        load_autoencoder(config_of(kind, tmp_path), device=CPU)


def test_a_damaged_weight_file_is_an_error(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    data = (folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; loading says: "):
        build(tmp_path)


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / WEIGHTS)
    weights["decoder.conv_in.bias"][3] = float("nan")
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"the weight decoder\.conv_in\.bias holds numbers that are not finite"
    ):
        build(tmp_path)


def test_weights_that_are_a_link_to_nowhere_are_an_error(tmp_path: Path, folder: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / WEIGHTS).symlink_to("absent")
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; loading says: .*No such file"):
        build(tmp_path)


def test_a_weight_file_that_would_run_code_is_not_read(tmp_path: Path, folder: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (f"{tmp_path}/planted",)

    text = (folder / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    torch.save({"weight": Planted()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*diffusion_pytorch_model\.safetensors"):
        build(tmp_path)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "AutoencoderDC"},
        {"_class_name": "UNet2DModel"},
        {"latent_channels": 4},
        {"latent_channels": float("inf")},
        {"latent_channels": None},
        {"block_out_channels": [8, "8", 8]},
        {"scaling_factor": None},
        {"scaling_factor": 0.0},
        {"scaling_factor": float("nan")},
        {"scaling_factor": "1"},
        {"shift_factor": float("inf")},
        {"latents_mean": [0.0, 1.0], "latents_std": [1.0, 1.0]},
        {"latents_mean": [0.0] * 16},
        {"latents_mean": [0.0] * 16, "latents_std": [0.0] * 16},
        {"latents_mean": [0.0] * 16, "latents_std": [float("inf")] * 16},
        {"latents_mean": [float("nan")] * 16, "latents_std": [1.0] * 16},
        {"latents_mean": [[0.0]] * 16, "latents_std": [[1.0]] * 16},
        {"latents_mean": "x", "latents_std": "x"},
        {"latents_std": "x"},
        {"norm_num_groups": 0},
        {"down_block_types": ["NoSuchBlock"] * 3},
    ],
)
def test_a_config_of_strange_values_is_an_error_that_names_the_setting(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=r"autoencoder\.path is"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dc", {"scaling_factor": 0}),
        ("dc", {"scaling_factor": None}),
        ("dc", {"scaling_factor": float("inf")}),
        ("qwen-image", {"latents_mean": [0.0] * 3}),
        ("qwen-image", {"latents_mean": None}),
        ("qwen-image", {"latents_std": [0.0] * 4}),
        ("qwen-image", {"latents_std": [float("nan")] * 4}),
        ("repa-e", {"latents_mean": None, "latents_std": None}),
        ("repa-e", {"latents_std": None}),
        ("flux2", {"batch_norm_eps": float("nan")}),
        ("flux2", {"batch_norm_eps": "x"}),
        ("tiny", {"scaling_factor": 0.0}),
        ("tiny", {"shift_factor": "x"}),
    ],
)
def test_scaling_numbers_without_sense_are_an_error_in_each_class(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model_of_kind(kind).save_pretrained(tmp_path)
    change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; loading says: "):
        load_autoencoder(config_of(kind, tmp_path), device=CPU)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_variance_without_sense_is_an_error(variance: float, tmp_path: Path) -> None:
    model = model_of_kind("flux2")
    model.bn.running_var.fill_(variance)
    model.save_pretrained(tmp_path)
    change_config(tmp_path, {"batch_norm_eps": 0.0})
    with pytest.raises(ValueError, match=r"16 channels the scale|bn\.running_var holds numbers"):
        load_autoencoder(config_of("flux2", tmp_path), device=CPU)
