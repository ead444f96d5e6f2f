"""More blocks: copies that add nothing at first.

D width.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.schema import Config

State = Mapping[str, LazyTensor]
BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.+)")
GATES = (2, 5)
"""Of the six parts of a block's modulation, those that weigh what attention and the feed-forward network
add."""
OUTPUTS = re.compile(
    r"(attention|cross_attention)\.(text_)?projection\.(weight|bias)"
    r"|(text_)?feed_forward\.(shared_experts\.)?w_out\.(weight|bias)"
    r"|feed_forward\.experts\.\d+\.[wb]_out"
)


def plan_blocks(config: Config, depth: int) -> list[tuple[int, bool]]:
    """For each block of the deeper model, the block that it is of, and whether it is an added copy. Copies
    follow their originals, spread evenly over the depth, in groups of `moe.every` blocks, so that experts
    stay where `moe.every` says.

    Raises: ValueError naming model.depth.
    """
    before, moe = config.model.depth, config.moe
    size = moe.every if moe.num_experts else 1
    added = depth - before
    if added < 0 or added % size:
        raise ValueError(
            f"model.depth was {before}, is {depth}; expected {before} or more"
            + (f", by a multiple of moe.every ({size})" if size > 1 else "")
        )
    first = -(-moe.first_dense // size) if moe.num_experts else 0
    groups = list(range(first, before // size))
    if config.model.attention == "joint" and groups and (groups[-1] + 1) * size == before:
        groups.pop()  # the last block is another: its text ends there
    if added and not groups:
        raise ValueError(f"model.depth was {before}, is {depth}: there is no block to copy")
    copies = dict.fromkeys(groups, 0)
    for number in range(added // size):
        copies[groups[number * len(groups) // (added // size)]] += 1
    plan: list[tuple[int, bool]] = []
    for start in range(0, before, size):
        group = list(range(start, min(start + size, before)))
        plan += [(block, False) for block in group]
        plan += [(block, True) for block in group] * copies.get(start // size, 0)
    return plan


def grow_depth(tensors: State, model: ModelConfig, plan: list[tuple[int, bool]]) -> dict[str, LazyTensor]:
    """The tensors of one family by their names in the deeper model."""
    grown = {name: tensor for name, tensor in tensors.items() if not BLOCK.fullmatch(name)}
    by_block: dict[int, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if found := BLOCK.fullmatch(name):
            by_block.setdefault(int(found[1]), {})[found[2]] = tensor
    for block, (source, is_copy) in enumerate(plan):
        for name, tensor in by_block.get(source, {}).items():
            grown[f"transformer.blocks.{block}.{name}"] = (
                _silenced(name, tensor, model) if is_copy else tensor
            )
    return grown


def _silenced(name: str, tensor: LazyTensor, model: ModelConfig) -> LazyTensor:
    """The tensor in a block that adds nothing: gates of 0 where the block has its own modulation, else
    outputs of 0. Cross-attention has no gate."""
    if model.modulation == "block" and not name.startswith("cross_attention."):
        is_gates = re.fullmatch(r"(text_)?modulation\.(weight|bias)", name)
        return tensor.map(lambda values: _without_gates(values, model.width)) if is_gates else tensor
    return tensor.map(torch.zeros_like) if OUTPUTS.fullmatch(name) else tensor


def _without_gates(values: Tensor, width: int) -> Tensor:
    parts = [part.clone() for part in values.split(width)]
    for number in GATES:
        if number < len(parts):
            parts[number].zero_()
    return torch.cat(parts)
