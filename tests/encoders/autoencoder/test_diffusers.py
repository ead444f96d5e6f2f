import json
import os
import shutil
import time
from typing import Any  # diffusers' models carry no useful types

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from diffmoe_scale.config.encoders import AutoencoderConfig
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.encoders.autoencoder.diffusers import kl_latent_format
from diffmoe_scale.encoders.fingerprint import fingerprint

CPU = torch.device("cpu")


def tiny_model(**settings: Any) -> Any:
    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=16,
        **settings,
    )
    return model.eval()


def build(folder):
    return build_autoencoder(AutoencoderConfig(kind="kl", path=str(folder)), device=CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kl")
    tiny_model(scaling_factor=1.5, shift_factor=0.25).save_pretrained(path)
    return path


@pytest.fixture(params=["pixels", "kl"])
def any_autoencoder(request):
    path = str(request.getfixturevalue("folder")) if request.param == "kl" else ""
    return build_autoencoder(AutoencoderConfig(kind=request.param, path=path), device=CPU)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_have_the_promised_shape_and_decode_to_the_images_shape(any_autoencoder):
    latents_BCHW = any_autoencoder.encode(images())
    assert latents_BCHW.shape == (
        2,
        any_autoencoder.channels,
        16 // any_autoencoder.factor,
        24 // any_autoencoder.factor,
    )
    assert any_autoencoder.decode(latents_BCHW).shape == images().shape


def test_encoding_draws_nothing(any_autoencoder):
    state = torch.get_rng_state()
    assert torch.equal(any_autoencoder.encode(images()), any_autoencoder.encode(images()))
    assert torch.equal(torch.get_rng_state(), state)


def test_encoding_builds_no_graph(any_autoencoder):
    latents_BCHW = any_autoencoder.encode(images())
    assert not latents_BCHW.requires_grad and not any_autoencoder.decode(latents_BCHW).requires_grad


def test_pixels_are_the_images_themselves():
    autoencoder = build_autoencoder(AutoencoderConfig(), device=CPU)
    assert torch.equal(autoencoder.encode(images()), images())
    assert torch.equal(autoencoder.decode(images()), images())


def test_latents_are_the_shifted_and_scaled_mean(folder):
    with torch.no_grad():
        mean_BCHW = tiny_model().encode(images()).latent_dist.mean
    torch.testing.assert_close(build(folder).encode(images()), (mean_BCHW - 0.25) * 1.5)


def test_decoding_undoes_shift_and_scale(folder):
    autoencoder = build(folder)
    with torch.no_grad():
        model = tiny_model()
        expected = model.decode(model.encode(images()).latent_dist.mean).sample
    # (z - shift) * scale and back rounds each latent twice.
    torch.testing.assert_close(
        autoencoder.decode(autoencoder.encode(images())), expected, rtol=1e-4, atol=1e-5
    )


def test_statistics_of_each_channel_replace_the_shift(tmp_path):
    mean, std = [0.1 * channel for channel in range(16)], [1.0 + channel for channel in range(16)]
    tiny_model(scaling_factor=0.5, latents_mean=mean, latents_std=std).save_pretrained(tmp_path)
    with torch.no_grad():
        z_BCHW = tiny_model().encode(images()).latent_dist.mean
    latents_BCHW = build(tmp_path).encode(images())
    expected = torch.stack(
        [(z_BCHW[:, channel] - mean[channel]) * 0.5 / std[channel] for channel in range(16)], dim=1
    )
    torch.testing.assert_close(latents_BCHW, expected)


def test_config_without_a_shift_means_no_shift(tmp_path):
    tiny_model(scaling_factor=2.0).save_pretrained(tmp_path)
    with torch.no_grad():
        z_BCHW = tiny_model().encode(images()).latent_dist.mean
    torch.testing.assert_close(build(tmp_path).encode(images()), 2 * z_BCHW)


def test_missing_folder_is_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*absent.*config\.json"):
        build(tmp_path / "absent")


def test_folder_without_weights_is_an_error_that_names_the_file(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*diffusion_pytorch_model\.safetensors"):
        build(tmp_path)


def test_weights_of_another_shape_are_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"latent_channels": 4}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"autoencoder\.path is"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_class_name": "AutoencoderDC"}', "is of AutoencoderDC"),
        ("{", "does not parse"),
        ("[]", "does not parse"),
    ],
)
def test_config_of_something_else_is_an_error(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"autoencoder\.path is .*{message}"):
        build(tmp_path)


def test_missing_weights_are_an_error_that_counts_them(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    names = sorted(name for name in weights if name.startswith("decoder.conv_in"))
    save_file({name: weight for name, weight in weights.items() if name not in names}, file)
    with pytest.raises(ValueError, match=r"autoencoder\.path is .*; 2 weights are missing, the first is dec"):
        build(tmp_path)


def test_the_format_of_latents_is_known_without_reading_weights(folder):
    autoencoder = build(folder)
    assert kl_latent_format(folder) == (autoencoder.channels, autoencoder.factor) == (16, 4)


def test_the_fingerprint_is_that_of_the_weights_and_is_kept_beside_them(tmp_path):
    tiny_model(scaling_factor=1.5).save_pretrained(tmp_path)
    time.sleep(0.1)  # a step of the file system's clock
    first = build(tmp_path)
    expected = fingerprint(first.model, [[[0.0]]], [[[1.5]]])
    assert first.fingerprint() == build(tmp_path).fingerprint() == expected
    assert expected in (tmp_path / "fingerprint.json").read_text(encoding="utf-8")


def test_a_weight_file_that_would_run_code_is_not_read(tmp_path, folder):
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
        {"latent_channels": "4"},
        {"latent_channels": -1},
        {"latent_channels": float("inf")},
        {"latent_channels": None},
        {"block_out_channels": 8},
        {"block_out_channels": []},
        {"block_out_channels": [8] * 1000},
        {"block_out_channels": [8, "8", 8]},
        {"scaling_factor": None},
        {"scaling_factor": 0.0},
        {"scaling_factor": float("nan")},
        {"scaling_factor": "1"},
        {"shift_factor": float("inf")},
        {"latents_mean": [0.0, 1.0]},
        {"latents_std": [0.0] * 16},
        {"latents_std": "x"},
        {"norm_num_groups": 0},
        {"down_block_types": ["NoSuchBlock"] * 3},
    ],
)
def test_a_config_of_strange_values_is_an_error_that_names_the_setting(folder, tmp_path, changes):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=r"autoencoder\.path is"):
        build(tmp_path)
