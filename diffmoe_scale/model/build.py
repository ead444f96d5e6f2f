"""The blocks of a transformer, by its settings."""

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.model.block import Block
from diffmoe_scale.model.joint_block import JointBlock
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.nn.feed_forward import FeedForward


def build_block(
    config: ModelConfig,
    moe: MoEConfig,
    *,
    index: int,
    text_width: int,
    groups: ProcessGroupCollection,
    target_width: int,
) -> Block | JointBlock:
    """Block `index`, of the kind that `model.attention` names, in a network that puts out `target_width`
    numbers a token."""
    feed_forward = build_feed_forward(
        config, moe, block_index=index, groups=groups, target_width=target_width
    )
    match config.attention:
        case "cross":
            return Block(config, text_width=text_width, feed_forward=feed_forward)
        case "joint":
            is_last = index == config.depth - 1
            text_feed_forward = None if is_last else build_dense(config, moe)
            return JointBlock(config, feed_forward=feed_forward, text_feed_forward=text_feed_forward)


def build_feed_forward(
    config: ModelConfig,
    moe: MoEConfig,
    *,
    block_index: int,
    groups: ProcessGroupCollection,
    target_width: int,
) -> nn.Module:
    """The MoE layer of every `moe.every`-th block after the first `moe.first_dense`, the dense network of the
    others."""
    if block_index in moe.blocks(config.depth):
        return MoELayer(
            moe,
            width=config.width,
            layer_index=block_index,
            groups=groups,
            target_width=target_width,
        )
    return build_dense(config, moe)


def build_dense(config: ModelConfig, moe: MoEConfig) -> FeedForward:
    """A dense feed-forward network, with the activation of the experts."""
    hidden = round(config.feed_forward_ratio * config.width)
    if hidden < 1:
        raise ValueError(
            f"model.feed_forward_ratio is {config.feed_forward_ratio}, which makes networks of model.width "
            f"{config.width} {hidden} wide; choose at least {1 / config.width:.4g}"
        )
    return FeedForward(config.width, hidden, is_gated=moe.activation == "swiglu")
