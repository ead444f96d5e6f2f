"""The block of joint attention against diffusers' own of Stable Diffusion 3, from the same weights."""

from typing import Any  # the tensors of diffusers' block by name

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.model.block import BlockContext
from diffmoe_scale.model.joint_block import JointBlock
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.feed_forward import FeedForward
from tests.model.models import disturb

WIDTH, HEADS = 32, 4


def make_block(*, is_last: bool, qk_norm: str) -> JointBlock:
    config = ModelConfig(
        width=WIDTH,
        heads=HEADS,
        attention="joint",
        text_projection=True,
        qk_norm=qk_norm,  # type: ignore[arg-type]  # one of the two texts
    )
    dense = [FeedForward(WIDTH, 4 * WIDTH, is_gated=False) for _ in range(2)]
    block = JointBlock(config, feed_forward=dense[0], text_feed_forward=None if is_last else dense[1])
    disturb(block)
    return block


def their_block(block: JointBlock, *, is_last: bool, qk_norm: str) -> JointTransformerBlock:
    theirs = JointTransformerBlock(
        WIDTH,
        HEADS,
        WIDTH // HEADS,
        context_pre_only=is_last,
        qk_norm="rms_norm" if qk_norm == "rms" else None,
    )
    ours, state = block.state_dict(), theirs.state_dict()
    names: dict[str, str] = {
        "attn.to_out.0": "attention.projection",
        "attn.to_add_out": "attention.text_projection",
        "attn.norm_q": "attention.query_norm",
        "attn.norm_k": "attention.key_norm",
        "attn.norm_added_q": "attention.text_query_norm",
        "attn.norm_added_k": "attention.text_key_norm",
        "norm1.linear": "modulation",
        "norm1_context.linear": "text_modulation",
        "ff.net.0.proj": "feed_forward.w_in",
        "ff.net.2": "feed_forward.w_out",
        "ff_context.net.0.proj": "text_feed_forward.w_in",
        "ff_context.net.2": "text_feed_forward.w_out",
    }
    parts: dict[str, tuple[str, int]] = {
        **{f"attn.to_{letter}": ("attention.qkv", index) for index, letter in enumerate("qkv")},
        **{
            f"attn.add_{letter}_proj": ("attention.text_qkv", index)
            for index, letter in enumerate("kv" if is_last else "qkv")
        },
    }
    found: dict[str, Any] = {}
    for name in state:
        module, kind = name.rsplit(".", 1)
        if module in names and f"{names[module]}.{kind}" in ours:
            found[name] = ours[f"{names[module]}.{kind}"]
        elif module in parts:
            source, index = parts[module]
            found[name] = ours[f"{source}.{kind}"].split(WIDTH)[index]
    if is_last:
        # Theirs has the scale before the shift there.
        for name in ("norm1_context.linear.weight", "norm1_context.linear.bias"):
            found[name] = torch.cat(found[name].chunk(2)[::-1])
    # Queries of the last text have no reader: the only weights that we do not have.
    missing = {name for name in state if name not in found}
    unread = ("attn.add_q_proj", "attn.norm_added_q") if is_last else ()
    assert all(name.startswith(unread) and unread for name in missing), missing
    theirs.load_state_dict({**state, **found})
    return theirs


@pytest.mark.parametrize("qk_norm", ["none", "rms"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_joint_block_is_that_of_stable_diffusion_3(is_last: bool, qk_norm: str) -> None:
    block = make_block(is_last=is_last, qk_norm=qk_norm)
    generator = torch.Generator().manual_seed(1)
    x_BND, text_BLD = (torch.randn(3, length, WIDTH, generator=generator) for length in (6, 5))
    time_BD = torch.randn(3, WIDTH, generator=generator)
    context = BlockContext(
        time_BD=time_BD,
        modulation_BM=time_BD,
        text_mask_BL=torch.ones(3, 5, dtype=torch.bool),
        rotation=None,
        selection=Selection(),
        image_pixels=1,
    )
    theirs = their_block(block, is_last=is_last, qk_norm=qk_norm)
    expected_text, expected_BND = theirs(x_BND, text_BLD, time_BD)
    got_BND, got_text, routing = block(x_BND, text_BLD, context)
    assert routing is None

    def assert_close(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    assert_close(got_BND, expected_BND)
    if is_last:
        assert got_text is None and expected_text is None
    else:
        assert_close(got_text, expected_text)
