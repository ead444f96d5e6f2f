"""Small networks that the tests of this folder share, and the reference implementation's names of their
tensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal  # Any: settings of any type are passed on to the configs

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.fingerprint import fingerprint
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures, TextStream
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.encoders.text.tokenizer import Tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.initialization import initialize_transformer
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.routing import Rule, Selection
from tests.moe.layers import alone

REFERENCE = Path(__file__).parents[1] / "reference" / "model.npz"
WIDTH, EXPERTS, TEXT_WIDTH, CHANNELS, SIZE = 32, 4, 12, 4, 8
# fp32 sums in another order, relative to the largest element: small elements are differences of large ones.
TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "cross": {},
    "cross-all": {"qk_norm": "rms", "positions": "rope2d", "modulation": "shared"},
    "joint": {"attention": "joint", "text_projection": True},
    "joint-all": {
        "attention": "joint",
        "text_projection": True,
        "qk_norm": "rms",
        "positions": "rope2d",
        "modulation": "shared",
    },
}
"""Settings of `model` for each kind of block, plain and with all that goes with it."""
RENAMED = {
    r"^patch_embedding": "x_embedder.proj",
    r"^time_embedding": "t_embedder",
    r"^class_embedding": "y_embedder.embedding_table",
    r"^final_modulation": "final_layer.adaLN_modulation.1",
    r"^final_projection": "final_layer.linear",
    r"\.attention\.qkv": ".attn.qkv",
    r"\.attention\.projection": ".attn.proj",
    r"\.modulation": ".adaLN_modulation.1",
    r"\.feed_forward": ".mlp",
    r"\.router\.weight": ".gate_weight",
    r"\.router\.predictor\.hidden": ".capacity_predictor.0",
    r"\.router\.predictor\.output": ".capacity_predictor.2",
    r"\.w_in$": ".fc1.weight",
    r"\.b_in$": ".fc1.bias",
    r"\.w_out$": ".fc2.weight",
    r"\.b_out$": ".fc2.bias",
    r"\.w_in\.": ".fc1.",
    r"\.w_out\.": ".fc2.",
}
"""Patterns in our names of parameters, and what the reference has in their place."""


def assert_near(
    got: Tensor, expected: np.ndarray | Tensor, name: str = "", *, tolerance: float = TOLERANCE
) -> None:
    """Equal up to `tolerance` times the largest expected element."""
    difference = (got.detach().double() - torch.as_tensor(expected).double()).abs().max()
    scale = torch.as_tensor(expected).double().abs().max()
    assert got.shape == torch.as_tensor(expected).shape and difference <= tolerance * scale, (
        f"{name}: off by {difference} of {scale}"
    )


def make_transformer(
    conditioning: Literal["text", "class"],
    *,
    output_channels: int = CHANNELS,
    patch_size: int = 2,
    latent_size: int = SIZE,
    seed: int = 0,
    activation_checkpointing: Literal["none", "blocks", "experts"] = "none",
    groups: ProcessGroupCollection | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    **moe: Any,
) -> DiffusionTransformer:
    """Depth 4, experts in blocks 1 and 3, latents 4x8x8 in patches of 2; `text` mode has pooled features.
    `model` and `moe` are further settings."""
    is_text = conditioning == "text"
    transformer = DiffusionTransformer(
        ModelConfig(
            conditioning=conditioning,
            num_classes=0 if is_text else 10,
            channels=CHANNELS,
            patch_size=patch_size,
            depth=4,
            width=WIDTH,
            activation_checkpointing=activation_checkpointing,
            **model,
        ),
        MoEConfig(**({"num_experts": EXPERTS, "threshold_bias_correction": False} | moe)),
        latent_size=latent_size,
        output_channels=output_channels,
        text_streams=(StreamWidths("test", TEXT_WIDTH, TEXT_WIDTH),) if is_text else (),
        groups=groups or alone(),
    )
    initialize_transformer(transformer, seed)
    return transformer


@torch.no_grad()
def disturb(module: nn.Module, *, seed: int = 0) -> None:
    """Give every parameter a value of its own: at initialisation most of the network is switched off by
    zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def letter_ids(captions: list[str]) -> list[list[int]]:
    return [[ord(letter) for letter in caption] for caption in captions]


def trained_encoder(seed: int = 0) -> TrainedTextEncoder:
    """The encoder that is trained along, a token a letter."""
    config = TextConfig(width=TEXT_WIDTH, depth=1, heads=2, max_tokens=16)
    tokenizer = Tokenizer(letter_ids, start=[], end=[1], max_tokens=16)
    encoder = TrainedTextEncoder(config, tokenizer, vocabulary=128)
    encoder.initialize(seed)
    return encoder


class FrozenEncoder(FrozenTextEncoder):
    """A token a letter: the plainest text encoder."""

    def __init__(self) -> None:
        super().__init__(
            Tokenizer(letter_ids, start=[], end=[1], max_tokens=16),
            name="letters",
            token_width=TEXT_WIDTH,
            pooled_width=TEXT_WIDTH,
            read_tower=nn.Embedding(128, TEXT_WIDTH).to,
        )

    def encode(self, tokens_BL: Tensor, mask_BL: Tensor) -> TextStream:
        assert self.tower is not None
        tokens_BLT = self.tower(tokens_BL)
        return TextStream(tokens_BLT, mask_BL, tokens_BLT.mean(1))

    def fingerprint(self) -> str:
        return fingerprint(self)


def reference_name(name: str) -> str:
    """What the reference calls the tensor that is our parameter `name`."""
    for ours, theirs in RENAMED.items():
        name = re.sub(ours, theirs, name)
    return name


def canonical_parameters(transformer: DiffusionTransformer) -> dict[str, nn.Parameter]:
    named = Denoiser(transformer, None).canonical_parameters()
    return {name.removeprefix("transformer."): parameter for name, parameter in named.items()}


def reference_transformer(arrays: dict[str, np.ndarray], **settings: Any) -> DiffusionTransformer:
    """The reference's network in ours: it puts out 8 channels, of which it uses the first 4."""
    transformer = make_transformer("class", output_channels=2 * CHANNELS, **settings)
    with torch.no_grad():
        for name, parameter in canonical_parameters(transformer).items():
            parameter.copy_(torch.from_numpy(arrays[f"state/{reference_name(name)}"]).view_as(parameter))
    return transformer


def with_thresholds(transformer: DiffusionTransformer, value: float) -> DiffusionTransformer:
    for layer in transformer.moe_layers():
        layer.router.predictor.expert_threshold_E.fill_(value)
    return transformer


def text_features(*, num_samples: int = 3, length: int = 5, seed: int = 0) -> TextStream:
    """Captions of different length: sample b has b + 2 valid tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask_BL = torch.arange(length) < torch.arange(num_samples)[:, None] + 2
    return TextStream(
        torch.randn(num_samples, length, TEXT_WIDTH, generator=generator),
        mask_BL,
        torch.randn(num_samples, TEXT_WIDTH, generator=generator),
    )


def call(
    transformer: DiffusionTransformer,
    text: TextStream,
    rule: Rule = "train",
    *,
    rows: slice = slice(None),
    x_BCHW: Tensor | None = None,
) -> Prediction:
    generator = torch.Generator().manual_seed(1)
    noisy_BCHW, time_B = (
        torch.randn(3, CHANNELS, SIZE, SIZE, generator=generator),
        torch.rand(3, generator=generator),
    )
    picked = TextFeatures((text.map(lambda tensor: tensor[rows]),))
    x_BCHW = noisy_BCHW if x_BCHW is None else x_BCHW
    prediction: Prediction = transformer(x_BCHW[rows], time_B[rows], Condition(text=picked), Selection(rule))
    return prediction


def disturbed_text_transformer(**settings: Any) -> DiffusionTransformer:
    transformer = make_transformer("text", router_init_std=0.5, **settings)
    disturb(transformer)
    return with_thresholds(transformer, 0.5)
