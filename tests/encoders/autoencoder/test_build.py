import json
from pathlib import Path
from random import Random
from typing import Any  # values of any type in a config.json

import pytest
import torch

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.autoencoder.build import (
    Autoencoder,
    build_autoencoder,
    check_picture_sizes,
    latent_format,
)
from diffmoe_scale.encoders.autoencoder.convention import convention_of
from diffmoe_scale.encoders.autoencoder.diffusers import class_of
from tests.encoders.autoencoder.models import CPU, FORMATS, config_of, images, load_kind, model_of_kind


@pytest.fixture(scope="module", params=["pixels", *FORMATS])
def any_autoencoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    if request.param == "pixels":
        return build_autoencoder(AutoencoderConfig(), device=CPU)
    return load_kind(request.param, tmp_path_factory.mktemp(request.param))


def test_latents_have_the_promised_shape_and_decode_to_the_images_shape(any_autoencoder: Autoencoder) -> None:
    latents_BCHW = any_autoencoder.encode(images())
    factor = any_autoencoder.factor
    assert latents_BCHW.shape == (2, any_autoencoder.channels, 16 // factor, 24 // factor)
    assert any_autoencoder.decode(latents_BCHW).shape == images().shape


def test_encoding_draws_nothing(any_autoencoder: Autoencoder) -> None:
    state = torch.get_rng_state()
    assert torch.equal(any_autoencoder.encode(images()), any_autoencoder.encode(images()))
    assert torch.equal(torch.get_rng_state(), state)


def test_encoding_builds_no_graph(any_autoencoder: Autoencoder) -> None:
    latents_BCHW = any_autoencoder.encode(images())
    assert not latents_BCHW.requires_grad and not any_autoencoder.decode(latents_BCHW).requires_grad


def test_pixels_are_the_images_themselves() -> None:
    autoencoder = build_autoencoder(AutoencoderConfig(), device=CPU)
    assert torch.equal(autoencoder.encode(images()), images())
    assert torch.equal(autoencoder.decode(images()), images())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_format_of_latents_is_known_without_weights(kind: str, tmp_path: Path) -> None:
    model_of_kind(kind).save_config(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert latent_format(config_of(kind, tmp_path)) == FORMATS[kind]


def test_the_format_of_pixels_is_that_of_pictures() -> None:
    assert latent_format(AutoencoderConfig()) == (3, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.image_size=60"],
            "model.image_size is 60; expected a multiple of 16: the autoencoder's factor 8",
        ),
        (["model.image_size=72"], "model.image_size is 72; expected a multiple of 16: .* model.patch_size 2"),
        (["buckets.enabled=true", "buckets.step=8"], "buckets.step is 8; expected a multiple of 16"),
        (["autoencoder.tile=48"], r"autoencoder.tile is 48; expected 0 \(off\) or a multiple of 32: 4 times"),
    ],
)
def test_sizes_that_do_not_fit_the_factor_are_named(settings: list[str], message: str) -> None:
    folder = ["autoencoder.kind=diffusers", "autoencoder.path=x", "model.image_size=64", "model.patch_size=2"]
    check_picture_sizes(load_config(None, folder), factor=8)
    with pytest.raises(ValueError, match=message):
        check_picture_sizes(load_config(None, [*folder, *settings]), factor=8)


FOUR_BLOCKS = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SEVEN_BLOCKS = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {
        "block_out_channels": [128, 256, 512, 512, 1024, 1024, 2048],
        "layers_per_block": [0, 2, 2, 2, 2, 2, 2],
        "block_types": ["ResBlock"] * 4 + ["EfficientViTBlock"] * 3,
        "qkv_multiscales": [[]] * 7,
    }.items()
}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("AutoencoderKL", {"latent_channels": 4} | FOUR_BLOCKS, (4, 8)),
        ("AutoencoderKL", {"latent_channels": 16, "use_quant_conv": False} | FOUR_BLOCKS, (16, 8)),
        ("AutoencoderTiny", {}, (4, 8)),
        ("AutoencoderKLFlux2", {}, (128, 16)),
        ("AutoencoderDC", {}, (32, 32)),
        ("AutoencoderDC", {"latent_channels": 128} | SEVEN_BLOCKS, (128, 64)),
        ("AutoencoderKLQwenImage", {}, (16, 8)),
    ],
)
def test_networks_of_the_released_sizes_have_the_format_that_their_config_says(
    name: str, settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    """SD, SD3 and Flux, TAESD, Flux.2, DC-AE f32c32 and f64c128, Qwen-Image, without memory."""
    convention = convention_of({"_class_name": name} | settings, normalization="pipeline")
    channels, factor = expected
    assert (convention.channels, convention.factor) == expected
    with torch.device("meta"), torch.no_grad():
        model = class_of(name).from_config(settings)
        images_BCHW = torch.zeros(1, 3, 2 * factor, 3 * factor)
        z_BCHW = convention.encode(model, images_BCHW)
        assert z_BCHW.shape == (1, channels, 2, 3)
        assert convention.decode(model, z_BCHW).shape == images_BCHW.shape


def test_any_config_gives_a_format_or_a_sentence(tmp_path: Path) -> None:
    random = Random(0)
    strange: list[Any] = [
        0,
        -1,
        1,
        10**30,
        1.5,
        True,
        None,
        "x",
        "",
        [],
        [2],
        [2, 2],
        [[]],
        {},
        {"a": 1},
        float("nan"),
    ]
    formats = sentences = 0
    for number in range(400):
        kind = random.choice(list(FORMATS))
        folder = tmp_path / kind
        if not folder.is_dir():
            model_of_kind(kind).save_config(folder)
            (tmp_path / f"{kind}.json").write_bytes((folder / "config.json").read_bytes())
        config = json.loads((tmp_path / f"{kind}.json").read_text(encoding="utf-8"))
        for name in random.sample(sorted(config), random.randint(1, 3)):
            if random.random() < 0.3:
                del config[name]
            else:
                config[name] = random.choice(strange)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            channels, factor = latent_format(config_of(kind, folder))
        except ValueError as error:
            assert str(error).startswith(f"autoencoder.path is '{folder}'"), number
            sentences += 1
        else:
            assert 1 <= channels < 10**8 and 1 <= factor < 10**6
            formats += 1
    assert formats > 50 and sentences > 50
