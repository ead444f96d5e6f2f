"""Sizes against the paper's Tables 1 and 9, and networks of any size without their memory."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal  # Any: settings of any type are passed on to the configs

import pytest
import torch

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.features import StreamWidths
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.initialization import initialize_transformer
from diffmoe_scale.model.networks import build_networks, build_transformer
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.plan.parameters import count_parameters
from tests.model.models import VARIANTS, make_transformer
from tests.moe.layers import alone

L_SIZE: dict[str, Any] = {
    "depth": 24,
    "width": 1024,
    "heads": 16,
    "patch_size": 2,
    "image_size": 256,
    "channels": 4,
}


def class_config(folder: Path, **moe: Any) -> Config:
    """DiffMoE-L on latents of 4 channels that are an eighth of the picture, without weights of either."""
    description = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8] * 4}
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    return Config(
        model=ModelConfig(conditioning="class", num_classes=1000, **L_SIZE),
        moe=MoEConfig(**moe),
        autoencoder=AutoencoderConfig(kind="kl", path=str(folder)),
        sampling=SamplingConfig(selection="static"),  # as routers without a predictor need it
    )


FEED_FORWARD = ("experts", "routers", "capacity predictors", "dense feed-forward")


# Millions, as the paper's Table 9 has them; it cuts digits off, so the parts are up to 0.15 too small.
@pytest.mark.parametrize(
    ("num_experts", "feed_forward", "total"),
    [(0, 201.44, 457.84), (2, 314.8, 571.2), (4, 516.3, 772.7), (8, 919.3, 1175.7), (16, 1725.3, 1981.7)],
)
def test_parameters_are_those_of_the_papers_table_9(
    tmp_path: Path, num_experts: int, feed_forward: float, total: float
) -> None:
    size = count_parameters(class_config(tmp_path, num_experts=num_experts))
    found = sum(size.by_part.get(name, 0) for name in FEED_FORWARD)
    assert found / 1e6 == pytest.approx(feed_forward, abs=0.05)
    assert size.by_part["attention"] / 1e6 == pytest.approx(100.7, abs=0.1)
    assert size.by_part["modulation"] / 1e6 == pytest.approx(151, abs=0.15)
    assert size.total / 1e6 == pytest.approx(total, abs=0.05) and size.total == sum(size.by_part.values())
    # Equation 40 at capacity 1: half of the blocks have experts, the others a network of the same size.
    activated = 2 / (1 + num_experts) * found + size.total - found if num_experts else size.total
    assert activated / 1e6 == pytest.approx(458, rel=0.02)
    assert size.tokens_per_picture == 256 and size.experts == num_experts


# Table 1. Its activated parameters are those of the dense model; its totals of S and B leave out what routes.
@pytest.mark.parametrize(
    ("sizes", "num_experts", "activated", "total", "is_whole"),
    [
        ({"depth": 12, "width": 384, "heads": 6}, 16, 32, 139, False),
        ({"depth": 12, "width": 768, "heads": 12}, 16, 130, 555, False),
        ({}, 8, 458, 1176, True),
        ({}, 16, 458, 1982, True),
        ({"depth": 28, "width": 1152, "heads": 16}, 16, 675, None, True),
    ],
)
def test_parameters_are_those_of_the_papers_table_1(
    tmp_path: Path,
    sizes: dict[str, Any],
    num_experts: int,
    activated: int,
    total: int | None,
    is_whole: bool,
) -> None:
    config = class_config(tmp_path, num_experts=num_experts)
    config = replace(config, model=replace(config.model, **sizes))
    dense = count_parameters(replace(config, moe=replace(config.moe, num_experts=0)))
    # Cut (32.97) or rounded (457.8): less than a million apart either way.
    assert abs(dense.total / 1e6 - activated) < 1
    if total is not None:
        parts = count_parameters(config).by_part
        routing = parts["routers"] + parts["capacity predictors"]
        found = sum(parts.values()) - (0 if is_whole else routing)
        assert round(found / 1e6) == total


@pytest.mark.parametrize(
    ("moe", "used"),
    [
        ({"capacity": 1.0}, 1.0),
        ({"capacity": 2.5}, 2.5),
        ({"router": "token_choice", "top_k": 3}, 3.0),
        ({"capacity": 1.0, "shared_experts": 1}, 1.0),
    ],
)
def test_a_token_passes_through_all_but_the_experts_that_do_not_take_it(
    tmp_path: Path, moe: dict[str, Any], used: float
) -> None:
    size = count_parameters(class_config(tmp_path, num_experts=8, **moe))
    expert = size.by_part["experts"] / 8
    assert size.activated == pytest.approx(size.total - (8 - used) * expert)


def test_a_dense_network_activates_all_of_it(tmp_path: Path) -> None:
    size = count_parameters(class_config(tmp_path, num_experts=0))
    assert size.activated == size.total and size.experts == 0


def test_the_count_is_that_of_the_network_that_is_built(tmp_path: Path) -> None:
    train_tokenizer(["a red circle"], vocabulary=270, path=tmp_path / "tokenizer")
    text = TextConfig(width=16, heads=2, depth=1, vocabulary=270)
    config = Config(model=ModelConfig(depth=2, width=32, heads=2), text=text, moe=MoEConfig(shared_experts=1))
    networks = build_networks(
        config, tokenizer_path=tmp_path / "tokenizer", groups=alone(), device=torch.device("cpu")
    )
    encoder = networks.denoiser.text_encoder
    assert encoder is not None
    # A whole vocabulary is counted; the captions gave fewer pieces.
    missing = (270 - encoder.token_embedding.num_embeddings) * 16
    built = sum(parameter.numel() for parameter in networks.denoiser.parameters())
    assert count_parameters(config).total == built + missing


def peak_memory_kib() -> int:
    """Of this process, since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


def test_a_network_of_17_billion_parameters_is_built_in_seconds_without_its_memory() -> None:
    config = Config(
        model=ModelConfig(width=3072, heads=24, depth=24, patch_size=2, image_size=64),
        moe=MoEConfig(num_experts=64, expert_width_ratio=1.0),
    )
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before_kib, start = peak_memory_kib(), time.process_time()
    transformer = build_transformer(
        config,
        latent_size=64,
        output_channels=3,
        text_streams=(StreamWidths("text", 128, 128),),
        groups=alone(),
    )
    taken_s, grown_kib = time.process_time() - start, peak_memory_kib() - before_kib
    assert sum(parameter.numel() for parameter in transformer.parameters()) > 17e9
    assert all(tensor.is_meta for tensor in (*transformer.parameters(), *transformer.buffers()))
    assert grown_kib < 2**20 and taken_s < 30


@pytest.mark.parametrize(
    "moe",
    [
        {"backend": "loop"},
        {"backend": "grouped", "activation": "swiglu", "shared_experts": 1},
        {"router": "expert_choice", "router_input": "decoupled"},
        {"router": "token_choice", "top_k": 2},
        {"num_experts": 0},
    ],
)
@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_a_network_on_meta_has_the_names_shapes_and_formats_of_one_with_memory(
    conditioning: Literal["text", "class"], moe: dict[str, Any]
) -> None:
    with torch.device("meta"):
        on_meta = make_transformer(conditioning, **moe)
    with_memory = make_transformer(conditioning, **moe)

    def format_of(transformer: DiffusionTransformer) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (value.shape, value.dtype) for name, value in transformer.state_dict().items()}

    assert format_of(on_meta) == format_of(with_memory)
    assert all(tensor.is_meta for tensor in on_meta.state_dict().values())
    assert format_of(on_meta.bfloat16()) == format_of(with_memory.bfloat16())


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_do_not_depend_on_what_the_memory_held_before(variant: str) -> None:
    with torch.device("meta"):
        first, second = (make_transformer("text", model=VARIANTS[variant]) for _ in range(2))
    for transformer, garbage in ((first, float("nan")), (second, 7.0)):
        transformer.to_empty(device="cpu")
        for tensor in transformer.state_dict().values():
            tensor.fill_(0 if tensor.dtype == torch.int64 else garbage)
        initialize_transformer(transformer, 0)
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_networks_without_width_are_refused_before_they_are_built() -> None:
    with pytest.raises(ValueError, match=r"moe\.expert_width_ratio is 0\.001, .* choose at least 0\.03125"):
        make_transformer("class", expert_width_ratio=0.001)
    config = Config(model=ModelConfig(feed_forward_ratio=0.001), moe=MoEConfig(num_experts=0))
    with pytest.raises(ValueError, match=r"model\.feed_forward_ratio is 0\.001, .* choose at least 0\.00625"):
        count_parameters(config)
