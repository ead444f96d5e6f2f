"""More blocks and other numbers of experts: which tensors are made of which."""

import pytest
import torch

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.grow_depth import grow_depth, plan_blocks
from diffmoe_scale.convert.upcycle import grow
from tests.convert.test_upcycle import EXPERTS, drawn_weights

START = "ema/transformer.blocks.1.feed_forward."


def config_of(*settings: str) -> Config:
    return load_config(None, ["model.width=64", "model.heads=2", *settings])


@pytest.mark.parametrize("added", range(1, 20))
def test_copies_are_spread_evenly_and_follow_their_originals(added: int) -> None:
    """Of any first blocks, their share of the copies to less than one."""
    plan = plan_blocks(config_of("model.depth=7", "moe.num_experts=0"), 7 + added)
    assert [block for block, is_copy in plan if not is_copy] == list(range(7))
    assert [block for block, _ in plan] == sorted(block for block, _ in plan) and len(plan) == 7 + added
    for block in range(7):
        before = sum(is_copy for source, is_copy in plan if source < block)
        assert abs(before - added * block / 7) < 1


def test_blocks_before_experts_begin_and_the_last_of_joint_attention_are_not_copied() -> None:
    dense_first = config_of("model.depth=6", "moe.every=2", "moe.first_dense=2")
    assert plan_blocks(dense_first, 10) == [
        (0, False),
        (1, False),
        *((block, is_copy) for start in (2, 4) for is_copy in (False, True) for block in (start, start + 1)),
    ]
    joint = config_of("model.depth=2", "moe.num_experts=0", "model.attention=joint")
    assert plan_blocks(joint, 4) == [(0, False), (0, True), (0, True), (1, False)]
    alone = config_of("model.depth=1", "moe.num_experts=0", "model.attention=joint")
    with pytest.raises(ValueError, match=r"model\.depth was 1, is 2: there is no block to copy"):
        plan_blocks(alone, 2)


def test_fewer_experts_are_the_means_of_those_with_one_remainder() -> None:
    """Expert 1 of 2 is the mean of experts 1 and 3 of 4, and so are its row of the router and threshold."""
    stored = drawn_weights(*EXPERTS)
    grown = grow(stored, ["moe.num_experts=2"])
    old, new = stored.tensors, grown.stored.tensors
    pairs = torch.stack([old[f"{START}experts.{expert}.w_in"].read() for expert in (1, 3)])
    torch.testing.assert_close(new[f"{START}experts.1.w_in"].read(), pairs.mean(0))
    rows_ED = old[f"{START}router.weight"].read()
    torch.testing.assert_close(new[f"{START}router.weight"].read()[1], (rows_ED[1] + rows_ED[3]) / 2)


def test_more_experts_are_the_old_ones_again_and_noise_is_in_the_new_ones_alone() -> None:
    stored = drawn_weights(*EXPERTS, "moe.router_input=decoupled")
    grown = grow(stored, ["moe.num_experts=8", "moe.capacity=2"], noise=0.1).stored
    for expert in range(8):
        old = stored.tensors[f"{START}experts.{expert % 4}.w_in"].read()
        new = grown.tensors[f"{START}experts.{expert}.w_in"].read()
        assert torch.equal(new, old) == (expert < 4) and (new - old).std() < 0.2 * old.std()
    for name in ("weight", "time_weight"):
        rows_ED = stored.tensors[f"{START}router.{name}"].read()
        assert torch.equal(grown.tensors[f"{START}router.{name}"].read(), torch.cat([rows_ED, rows_ED]))


def test_a_copy_of_a_block_with_shared_experts_or_cross_attention_adds_nothing() -> None:
    """Without gates of its own each network that adds to the tokens answers 0; cross-attention always."""
    settings = ["moe.shared_experts=1", "model.depth=2", "moe.every=1", "model.modulation=shared"]
    grown = grow(drawn_weights(*settings), ["model.depth=3"]).stored
    added = {
        name: tensor.read()
        for name, tensor in grown.family("ema").items()
        if name.startswith("transformer.blocks.1.")
    }
    outputs = {name for name, tensor in added.items() if not tensor.any()}
    start = "transformer.blocks.1."
    expected = [f"{start}attention.projection.{part}" for part in ("weight", "bias")]
    expected += [f"{start}feed_forward.shared_experts.w_out.{part}" for part in ("weight", "bias")]
    expected += [f"{start}feed_forward.experts.{expert}.{part}_out" for expert in range(4) for part in "wb"]
    assert outputs == set(expected)


def test_cross_attention_of_a_copy_answers_0_though_its_block_has_gates() -> None:
    name = "cross_attention.projection.weight"
    tensors = {f"transformer.blocks.0.{name}": LazyTensor.of(torch.ones(4, 4))}
    grown = grow_depth(tensors, config_of().model, [(0, False), (0, True)])
    assert [float(grown[f"transformer.blocks.{block}.{name}"].read().sum()) for block in (0, 1)] == [16, 0]
