"""Small networks of classes and of captions, and what they were called with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any  # settings of any type are passed on to the config

import torch
from torch import Tensor

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.sampling.batch import Generated, generate_batch, number_requests
from tests.model.models import EXPERTS, WIDTH, disturb
from tests.moe.layers import alone

CPU = torch.device("cpu")
CPU = torch.device("cpu")
SIZE, NUM_CLASSES, STEPS = 8, 3, 4
PLAIN = SamplingConfig(steps=STEPS, guidance=1.0)


def config(*, image_size: int = SIZE, moe: dict[str, Any] | None = None, **sections: Any) -> Config:
    model = ModelConfig(
        conditioning="class",
        num_classes=NUM_CLASSES,
        image_size=image_size,
        patch_size=2,
        depth=2,
        width=WIDTH,
    )
    experts = MoEConfig(
        **({"num_experts": EXPERTS, "router_init_std": 0.5, "threshold_bias_correction": False} | (moe or {}))
    )
    given: dict[str, Any] = {"model": model, "moe": experts} | sections
    return Config(**given)


def build(config: Config, *, tokenizer: Path = Path("unused")) -> Networks:
    networks = build_networks(config, tokenizer_path=tokenizer, groups=alone(), device=CPU)
    disturb(networks.denoiser)
    for layer in networks.denoiser.moe_layers():
        layer.router.predictor.expert_threshold_E.fill_(0.5)
    return networks


def text_networks(folder: Path, **settings: Any) -> Networks:
    """A text-to-image model; `settings` are those of `model`."""
    captions = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square")]
    train_tokenizer(captions, vocabulary=512, path=folder / "tokenizer")
    text = TextConfig(width=16, heads=2, depth=1, vocabulary=512)
    model = ModelConfig(image_size=SIZE, patch_size=2, depth=2, width=WIDTH, **settings)
    return build(config(model=model, text=text), tokenizer=folder / "tokenizer")


def generate(
    networks: Networks,
    prompts: Sequence[str | int],
    sampling: SamplingConfig,
    *,
    seed: int,
    first_index: int = 0,
    negative_prompt: str = "",
) -> Generated:
    requests = number_requests(prompts, seed=seed, first_index=first_index, negative_prompt=negative_prompt)
    return generate_batch(networks, requests, sampling)


def counted(networks: Networks) -> list[Condition]:
    """The condition of every pass through the network from now on."""
    seen: list[Condition] = []
    networks.denoiser.register_forward_pre_hook(lambda denoiser, arguments: seen.append(arguments[2]))
    return seen


def labels_of(condition: Condition) -> list[int]:
    assert condition.labels_B is not None
    return [int(label) for label in condition.labels_B]


class Latents:
    """An autoencoder of 16-pixel patches."""

    channels, factor = 3, 16

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, :, ::16, ::16]

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW.repeat_interleave(16, 2).repeat_interleave(16, 3)

    def fingerprint(self) -> str:
        return "16-pixel patches"
