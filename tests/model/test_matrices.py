from pathlib import Path

import pytest

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.matrices import Stack, hidden_matrices
from diffmoe_scale.train.optim import parameter_groups
from tests.model.models import VARIANTS, make_transformer
from tests.moe.layers import alone
from tests.train.plain_muon import num_parts
from tests.train.runs import tiny_config, tiny_pipeline


def stacks_of(denoiser: Denoiser) -> dict[str, Stack]:
    stacks = hidden_matrices(denoiser)
    return {
        name: stacks[id(parameter)]
        for name, parameter in denoiser.canonical_parameters().items()
        if id(parameter) in stacks
    }


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_matrices_of_hidden_layers_are_muons_and_all_else_is_adamws(activation: str) -> None:
    config = tiny_config([f"moe.activation={activation}", "moe.shared_experts=1"])
    denoiser = tiny_pipeline(config, alone()).denoiser
    expected = {name: num_parts(name, config) for name in denoiser.canonical_parameters()}
    expected |= {
        f"transformer.blocks.1.feed_forward.shared_experts.{side}.weight": parts
        for side, parts in (("w_in", 2 if activation == "swiglu" else 1), ("w_out", 1))
    }
    assert {name: stack.count for name, stack in stacks_of(denoiser).items()} == {
        name: count for name, count in expected.items() if count
    }
    assert sum(count > 0 for count in expected.values()) == 3 * 2 + 2 + 2 * 4 + 2


def test_joint_attention_and_shared_modulation_fall_into_their_parts() -> None:
    denoiser = Denoiser(make_transformer("text", model=VARIANTS["joint-all"]), None)
    stacks = stacks_of(denoiser)
    counts = {name.removeprefix("transformer."): stack.count for name, stack in stacks.items()}
    last = max(int(name.split(".")[1]) for name in counts if name.startswith("blocks."))
    assert counts["blocks.0.attention.qkv.weight"] == counts["blocks.0.attention.text_qkv.weight"] == 3
    assert counts[f"blocks.{last}.attention.text_qkv.weight"] == 2
    assert counts["shared_modulation.weight"] == 6
    assert not [name for name in counts if "table" in name or "projections" in name or "final" in name]


def test_joint_modulations_have_as_many_parts_as_numbers() -> None:
    stacks = stacks_of(Denoiser(make_transformer("text", model=VARIANTS["joint"]), None))
    assert {stack.count for name, stack in stacks.items() if name.endswith("modulation.weight")} == {2, 6}


def test_trained_text_encoder_and_cross_attention_fall_into_their_parts(tmp_path: Path) -> None:
    train_tokenizer(["a red circle", "two blue squares"], vocabulary=300, path=tmp_path / "tokenizer.model")
    encoder = build_text_encoder(
        TextConfig(vocabulary=300, width=12, depth=1), tokenizer_path=tmp_path / "tokenizer.model"
    )
    assert isinstance(encoder, TrainedTextEncoder)
    stacks = stacks_of(Denoiser(make_transformer("text"), encoder))
    text = {
        name.removeprefix("text_encoder.blocks.0."): stack
        for name, stack in stacks.items()
        if "text_enc" in name
    }
    assert text == {
        "qkv.weight": Stack(3, 12, 12),
        "projection.weight": Stack(1, 12, 12),
        "w_in.weight": Stack(1, 48, 12),
        "w_out.weight": Stack(1, 12, 48),
    }
    assert stacks["transformer.blocks.0.cross_attention.key_value.weight"] == Stack(2, 32, 12)
    assert stacks["transformer.blocks.0.cross_attention.query.weight"] == Stack(1, 32, 32)


def test_groups_of_muon_have_its_rate_and_every_parameter_is_in_one_group() -> None:
    settings = ["optimizer.kind=muon", "optimizer.muon_learning_rate_ratio=3", "optimizer.weight_decay=0.1"]
    denoiser = tiny_pipeline(tiny_config(settings), alone()).denoiser
    stacks = hidden_matrices(denoiser)
    seen = []
    for group in parameter_groups(denoiser, tiny_config(settings).optimizer):
        members = group["params"]
        assert isinstance(members, list)
        seen += [id(parameter) for parameter in members]
        if "stacks" in group:
            assert group["lr_ratio"] == 3 and group["weight_decay"] == 0.1
            assert group["stacks"] == [stacks[id(parameter)] for parameter in members]
        else:
            assert group["lr_ratio"] in (0.5, 1) and not stacks.keys() & {
                id(parameter) for parameter in members
            }
    assert sorted(seen) == sorted(id(parameter) for parameter in denoiser.parameters())
