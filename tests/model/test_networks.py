"""Networks of a config: how captions reach the denoiser, what does not fit, and fingerprints."""

from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type are passed on to the configs

import pytest
import torch

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.autoencoder.pixels import Pixels
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.networks import Networks, build_networks, check_sizes, find_fingerprints
from diffmoe_scale.parallel.context import ParallelContext
from tests.model.models import EXPERTS, SIZE, WIDTH, FrozenEncoder
from tests.moe.layers import alone
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
CAPTIONS = ["red", "a blue square", ""]
LABELS_B = torch.tensor([-1, -1, -1])


def config(**model: Any) -> Config:
    sizes = {"image_size": SIZE, "patch_size": 2, "depth": 2, "width": WIDTH}
    text = TextConfig(width=16, heads=2, depth=1, vocabulary=512)
    return Config(model=ModelConfig(**(sizes | model)), moe=MoEConfig(num_experts=EXPERTS), text=text)


def build(config: Config, folder: Path) -> Networks:
    train_tokenizer([caption for caption in CAPTIONS if caption], vocabulary=300, path=folder / "tokenizer")
    return build_networks(config, tokenizer_path=folder / "tokenizer", groups=alone(), device=CPU)


def test_captions_are_tokenized_for_the_encoder_that_is_trained_along(tmp_path: Path) -> None:
    networks = build(config(), tmp_path)
    condition = networks.condition(CAPTIONS, LABELS_B)
    (encoder,) = networks.text_encoders.encoders
    assert isinstance(encoder, TrainedTextEncoder)
    assert networks.denoiser.text_encoder is encoder
    assert condition.text is None and condition.tokens_BL is not None
    assert torch.equal(condition.tokens_BL, encoder.tokenize(CAPTIONS))
    assert networks.frozen == {"autoencoder": "pixels", "text": ""}


def test_captions_are_encoded_before_the_network_by_a_frozen_encoder(tmp_path: Path) -> None:
    encoder = FrozenEncoder()
    networks = replace(build(config(), tmp_path), text_encoders=TextEncoders((encoder,), ("test",)))
    condition = networks.condition(CAPTIONS, LABELS_B)
    assert condition.tokens_BL is None and condition.text is not None
    expected = encoder(encoder.tokenize(CAPTIONS))
    (stream,) = condition.text.streams
    assert torch.equal(stream.tokens_BLT, expected.tokens_BLT) and not stream.tokens_BLT.requires_grad
    # Features from a cache take the same way, in fp32.
    cached = replace(expected, tokens_BLT=2 * expected.tokens_BLT.bfloat16())
    text = networks.condition(CAPTIONS, LABELS_B, text=TextFeatures((cached,))).text
    assert text is not None and torch.equal(text.streams[0].tokens_BLT, cached.tokens_BLT.float())


def test_class_mode_needs_no_text_and_guidance_the_null_class(tmp_path: Path) -> None:
    networks = build(config(conditioning="class", num_classes=10), tmp_path)
    condition = networks.condition(["", ""], torch.tensor([3, 3]))
    assert networks.text_encoders.encoders == () and condition.text is None and condition.tokens_BL is None
    unconditional = networks.unconditional(2)
    assert unconditional.labels_B is not None and unconditional.labels_B.tolist() == [10, 10]


def test_channels_that_the_autoencoder_does_not_give_are_named(tmp_path: Path) -> None:
    message = r"model.channels is 3 but the autoencoder gives 4; set model.channels=4"
    with pytest.raises(ValueError, match=message):
        check_sizes(config(), channels=4, factor=1)


class LargeEncoder(FrozenEncoder):
    """Stands for gigabytes of weights: one rank alone may read them."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def fingerprint(self) -> str:
        assert self.rank == 0, "weights are hashed on one rank"
        return "0123456789abcdef"


def fingerprints_on_rank(parallel: ParallelContext) -> dict[str, str]:
    encoders = TextEncoders((LargeEncoder(parallel.rank),), ("large",))
    return find_fingerprints(Pixels(), encoders, parallel.waiting_group)


def test_one_rank_hashes_the_weights_and_all_know_the_fingerprints() -> None:
    expected = {"autoencoder": "pixels", "text": "0123456789abcdef"}
    assert run_on_ranks(fingerprints_on_rank, 2) == [expected, expected]
