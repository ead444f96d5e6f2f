from pathlib import Path

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
