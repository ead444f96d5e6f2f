"""A batch of pictures by the network and its rules."""

from dataclasses import replace
from pathlib import Path
from typing import Literal  # settings of any type are passed on to the config

import pytest
import torch
from torch import Tensor

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model import networks as module
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.moe.routing import Selection
from tests.model.models import EXPERTS, WIDTH
from tests.sampling.models import (
    CPU,
    NUM_CLASSES,
    PLAIN,
    SIZE,
    STEPS,
    Latents,
    build,
    config,
    counted,
    generate,
)


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> AutoencoderConfig:
    monkeypatch.setattr(module, "build_autoencoder", lambda config, device: Latents())
    return AutoencoderConfig(kind="kl", path="some/folder")


def test_pictures_are_euler_steps_of_the_guided_velocity() -> None:
    networks = build(config(diffusion=DiffusionConfig(time_scale=10.0)))
    _, x_BCHW = sample_noise(5, range(7, 10), (3, SIZE, SIZE), CPU)
    labels_B = torch.tensor([0, 2, 1])
    for step in range(STEPS):
        t_B = torch.full((3,), 1 - step / STEPS)
        velocities = [
            networks.denoiser(x_BCHW, 10 * t_B, Condition(labels), Selection("threshold")).value_BCHW.detach()
            for labels in (labels_B, torch.full((3,), NUM_CLASSES))
        ]
        x_BCHW = x_BCHW - (velocities[1] + 2 * (velocities[0] - velocities[1])) / STEPS
    generated = generate(
        networks, [0, 2, 1], SamplingConfig(steps=STEPS, guidance=2.0), seed=5, first_index=7
    )
    torch.testing.assert_close(generated.images_BCHW, x_BCHW.clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert generated.images_BCHW.shape == (3, 3, SIZE, SIZE)


def test_each_step_draws_noise_of_its_own() -> None:
    """Equal noise in the first two steps would give almost equal inputs (a correlation of 0.99)."""
    networks = build(config())
    seen: list[Tensor] = []
    networks.denoiser.register_forward_pre_hook(lambda denoiser, arguments: seen.append(arguments[0]))
    generate(networks, [0], SamplingConfig(steps=STEPS, guidance=1.0, fresh_noise=1.0), seed=5)
    correlations = torch.corrcoef(torch.stack([x_BCHW.flatten() for x_BCHW in seen]))
    assert len(seen) == STEPS and abs(float(correlations[0, 1])) < 0.6


def test_a_picture_does_not_depend_on_the_batch_that_it_is_drawn_in() -> None:
    networks, sampling = build(config()), SamplingConfig(steps=STEPS, guidance=2.0, fresh_noise=0.5)
    together = generate(networks, [0, 1, 2], sampling, seed=5)
    parts = [
        generate(networks, [0], sampling, seed=5),
        generate(networks, [1, 2], sampling, seed=5, first_index=1),
    ]
    alone_BCHW = torch.cat([part.images_BCHW for part in parts])
    # The same arithmetic over other numbers of rows.
    torch.testing.assert_close(together.images_BCHW, alone_BCHW, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        together.loads.load_TLE, (parts[0].loads.load_TLE + 2 * parts[1].loads.load_TLE) / 3
    )


def test_a_picture_of_a_caption_does_not_depend_on_longer_captions_beside_it(tmp_path: Path) -> None:
    captions = ["red circle", "a green square left of a blue circle and a red square", "blue square"]
    train_tokenizer(captions, vocabulary=512, path=tmp_path / "tokenizer")
    model = ModelConfig(image_size=SIZE, patch_size=2, depth=2, width=WIDTH)
    networks = build(
        config(model=model, text=TextConfig(width=16, heads=2, depth=1, vocabulary=512)),
        tokenizer=tmp_path / "tokenizer",
    )
    sampling = SamplingConfig(steps=STEPS, guidance=2.0, fresh_noise=0.5)
    together = generate(networks, captions, sampling, seed=5)
    one_by_one = [
        generate(networks, [caption], sampling, seed=5, first_index=i) for i, caption in enumerate(captions)
    ]
    # The same arithmetic over other numbers of rows and of padded text tokens.
    torch.testing.assert_close(
        together.images_BCHW, torch.cat([part.images_BCHW for part in one_by_one]), rtol=1e-5, atol=1e-5
    )
    assert 0 < together.loads.capacity < EXPERTS


def test_load_is_by_step_layer_and_expert_and_its_mean_the_capacity() -> None:
    networks = build(config())
    everything = generate(
        networks, [0, 1], SamplingConfig(steps=STEPS, selection="interval", gamma=0.0), seed=0
    )
    assert (
        torch.equal(everything.loads.load_TLE, torch.full((STEPS, 1, EXPERTS), float(EXPERTS)))
        and everything.loads.capacity == EXPERTS
    )
    assert (
        generate(networks, [0, 1], SamplingConfig(steps=STEPS, selection="static"), seed=0).loads.capacity
        == 1
    )
    assert everything.loads.times == [1.0, 0.75, 0.5, 0.25]


def test_a_dense_model_has_no_load_and_capacity_one() -> None:
    generated = generate(build(config(moe={"num_experts": 0})), [0], PLAIN, seed=0)
    assert generated.loads.load_TLE.numel() == 0 and generated.loads.capacity == 1


@pytest.mark.parametrize("is_training", [True, False])
def test_drawing_leaves_no_gradient_and_the_mode_as_it_was(is_training: bool) -> None:
    networks = build(config())
    networks.denoiser.train(is_training)
    modes: list[bool] = []
    networks.denoiser.register_forward_pre_hook(lambda denoiser, arguments: modes.append(denoiser.training))
    assert not generate(networks, [0], PLAIN, seed=0).images_BCHW.requires_grad
    assert networks.denoiser.training == is_training and not any(modes)


def test_captions_and_the_empty_caption_are_encoded_once_a_call(tmp_path: Path) -> None:
    captions = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square")]
    train_tokenizer(captions, vocabulary=512, path=tmp_path / "tokenizer")
    text = TextConfig(width=16, heads=2, depth=1, vocabulary=512)
    model = ModelConfig(image_size=SIZE, patch_size=2, depth=2, width=WIDTH)
    networks = build(config(model=model, text=text), tokenizer=tmp_path / "tokenizer")
    encoded: list[int] = []
    assert networks.denoiser.text_encoder is not None
    networks.denoiser.text_encoder.register_forward_pre_hook(
        lambda encoder, arguments: encoded.append(len(arguments[0]))
    )
    seen = counted(networks)
    first = generate(networks, captions[:2], SamplingConfig(steps=STEPS, guidance=3.0), seed=0)
    # The empty caption is one end token.
    lengths = [
        stream.tokens_BLT.shape[1]
        for condition in seen
        if condition.text is not None
        for stream in condition.text.streams
    ]
    assert encoded == [2, 2] and [length == 1 for length in lengths] == [False, True] * STEPS
    assert not torch.equal(
        first.images_BCHW,
        generate(networks, captions[2:4], SamplingConfig(steps=STEPS, guidance=3.0), seed=0).images_BCHW,
    )


def test_the_network_works_on_latents_and_pictures_are_decoded(latents: AutoencoderConfig) -> None:
    networks = build(config(image_size=64, autoencoder=latents))
    assert networks.latent_shape == (3, 4, 4)
    images_BCHW = generate(networks, [0], PLAIN, seed=0).images_BCHW
    assert images_BCHW.shape == (1, 3, 64, 64) and torch.equal(
        images_BCHW[:, :, :16, :16], images_BCHW[:, :, :1, :1].expand(1, 3, 16, 16)
    )


def test_an_image_size_that_the_autoencoder_does_not_divide_is_named(latents: AutoencoderConfig) -> None:
    with pytest.raises(ValueError, match=r"model.image_size is 72; expected a multiple of 32"):
        build(config(image_size=72, autoencoder=latents))


def test_weights_are_in_the_named_format_and_thresholds_in_fp32() -> None:
    model = ModelConfig(
        conditioning="class",
        num_classes=NUM_CLASSES,
        image_size=SIZE,
        patch_size=2,
        depth=2,
        width=WIDTH,
        precision="bf16",
    )
    networks = build(config(model=model))
    assert {parameter.dtype for parameter in networks.denoiser.parameters()} == {torch.bfloat16}
    assert networks.denoiser.moe_layers()[0].router.predictor.expert_threshold_E.dtype == torch.float32
    assert generate(networks, [0, 1], PLAIN, seed=0).images_BCHW.dtype == torch.float32


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_every_objective_draws_pictures_of_finite_pixels(objective: Literal["flow", "ddpm"]) -> None:
    images_BCHW = generate(
        build(config(diffusion=DiffusionConfig(kind=objective))), [0, 1], PLAIN, seed=0
    ).images_BCHW
    assert images_BCHW.isfinite().all() and images_BCHW.abs().max() <= 1


def test_pictures_have_the_height_and_width_asked_for() -> None:
    networks = build(config())
    images_BCHW = generate(
        networks, [0, 1], replace(PLAIN, height=SIZE // 2, width=2 * SIZE), seed=0
    ).images_BCHW
    assert images_BCHW.shape == (2, 3, SIZE // 2, 2 * SIZE)
    assert torch.equal(
        generate(networks, [0], PLAIN, seed=0).images_BCHW,
        generate(networks, [0], replace(PLAIN, height=SIZE, width=SIZE), seed=0).images_BCHW,
    )
    with pytest.raises(ValueError, match=r"sampling\.width is 7; expected a multiple of 2"):
        generate(networks, [0], replace(PLAIN, width=7), seed=0)


def test_a_bucket_step_that_patches_do_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match=r"buckets\.step is 1; expected a multiple of 2"):
        build(replace(config(), buckets=BucketConfig(enabled=True, step=1)))
