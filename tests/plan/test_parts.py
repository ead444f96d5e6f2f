"""Parameters by part of the variants of a block."""

import pytest

from diffmoe_scale.config.load import load_config
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.plan.parts import part_of

D, DEPTH, T = 64, 4, 128
SETTINGS = [f"model.width={D}", f"model.depth={DEPTH}", "moe.num_experts=0", f"text.width={T}"]


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("text_encoder.blocks.0.attention.projection.weight", "text encoder"),
        ("text_encoder", "text encoder"),
        ("transformer.blocks.1.feed_forward.router.target.weight", "target heads"),
        ("transformer.blocks.1.feed_forward.router.predictor.output.bias", "capacity predictors"),
        ("transformer.blocks.1.feed_forward.router.weight", "routers"),
        ("transformer.patch_embedding.weight", "embeddings and output"),
    ],
)
def test_the_innermost_part_counts_and_all_of_a_text_encoder_is_one(name: str, part: str) -> None:
    assert part_of(name) == part


def test_joint_attention_has_two_streams_and_the_last_block_ends_the_texts() -> None:
    parts = count_parameters(load_config(None, [*SETTINGS, "model.attention=joint"])).by_part
    image = linear(D, 3 * D) + linear(D, D)
    assert parts["attention"] == (2 * DEPTH - 1) * image + linear(D, 2 * D)
    assert parts["dense feed-forward"] == DEPTH * (linear(D, 4 * D) + linear(4 * D, D))
    assert parts["text feed-forward"] == (DEPTH - 1) * (linear(D, 4 * D) + linear(4 * D, D))
    assert parts["modulation"] == DEPTH * linear(D, 6 * D)
    assert parts["text modulation"] == (DEPTH - 1) * linear(D, 6 * D) + linear(D, 2 * D)
    assert "cross-attention" not in parts


def test_a_shared_modulation_is_one_for_all_blocks() -> None:
    whole, shared = (
        count_parameters(load_config(None, [*SETTINGS, f"model.modulation={kind}"]))
        for kind in ("block", "shared")
    )
    assert whole.by_part["modulation"] == DEPTH * linear(D, 6 * D)
    assert shared.by_part["modulation"] == DEPTH * 6 * D
    assert shared.by_part["shared modulation"] == linear(D, 6 * D)
    # The last layer, too, has a table in place of its linear layer.
    saved = DEPTH * (linear(D, 6 * D) - 6 * D) - linear(D, 6 * D) + linear(D, 2 * D) - 2 * D
    assert whole.total - shared.total == saved


def test_qk_norm_adds_two_scales_of_a_heads_width_to_each_attention() -> None:
    plain, normed = (
        count_parameters(load_config(None, [*SETTINGS, "model.heads=4", f"model.qk_norm={kind}"])).by_part
        for kind in ("none", "rms")
    )
    for part in ("attention", "cross-attention"):
        assert normed[part] - plain[part] == DEPTH * 2 * D // 4
