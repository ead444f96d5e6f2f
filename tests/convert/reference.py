"""Checkpoints of the DiT family: that of the reference's numbers, and drawn ones of other shapes."""

import argparse
from pathlib import Path
from typing import Any  # arguments of a training

import numpy as np
import torch

from diffmoe_scale.nn.embeddings import position_embedding
from tests.model.models import REFERENCE

State = dict[str, torch.Tensor]
WIDTH, DEPTH, HEADS, EXPERTS, PATCH, CHANNELS, GRID, CLASSES = 32, 4, 4, 4, 2, 4, 4, 10


def reference_state() -> State:
    """The weights that the reference's numbers are of, under its names."""
    arrays = np.load(REFERENCE)
    names = [name for name in arrays if name.startswith("state/")]
    return {name.removeprefix("state/"): torch.from_numpy(arrays[name]) for name in names}


def training_file(path: Path, state: State, *, arguments: Any = None) -> Path:
    """As the reference's trainer saves it: averages have thresholds of their own."""
    generator = torch.Generator().manual_seed(9)
    ema = {
        name: torch.zeros_like(tensor)
        if name.endswith("expert_threshold")
        else tensor + 0.01 * torch.randn(tensor.shape, generator=generator) * (name != "pos_embed")
        for name, tensor in state.items()
    }
    ema |= {name: tensor for name, tensor in state.items() if name.endswith("ema_decay")}
    torch.save({"model": state, "ema": ema, "opt": {"state": {}}, "args": arguments}, path)
    return path


def drawn_state(
    router: str = "",
    *,
    outputs: int = 2 * CHANNELS,
    is_gated: bool = False,
    shared_width: int = 0,
    every: int = 2,
    width: int = WIDTH,
    depth: int = DEPTH,
) -> State:
    """A model of the family by its published shapes; no experts without a router."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": (width,),
        **linear("t_embedder.mlp.0", 256, width),
        **linear("t_embedder.mlp.2", width, width),
        "y_embedder.embedding_table.weight": (CLASSES + 1, width),
        **linear("final_layer.linear", width, PATCH**2 * outputs),
        **linear("final_layer.adaLN_modulation.1", width, 2 * width),
    }
    for block in range(depth):
        name = f"blocks.{block}"
        shapes |= linear(f"{name}.attn.qkv", width, 3 * width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.adaLN_modulation.1", width, 6 * width)
        if router and block % every == every - 1:
            shapes |= experts(f"{name}.mlp", router, width, is_gated=is_gated, shared_width=shared_width)
        else:
            shapes |= network(f"{name}.mlp", width, 4 * width, is_gated=is_gated)
    generator = torch.Generator().manual_seed(5)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith(("gate_weight", "gate.weight")):
            state[name] *= 0.1  # softmax that is 0 and 1 has ties
        if name.endswith("expert_threshold"):
            state[name] = torch.full((EXPERTS,), 0.5)
        if name.endswith("ema_decay"):
            state[name] = torch.tensor([0.95])
    return state | {"pos_embed": position_embedding(GRID, GRID, width)[None]}


def linear(name: str, inputs: int, outputs: int, *, has_bias: bool = True) -> dict[str, tuple[int, ...]]:
    bias: dict[str, tuple[int, ...]] = {f"{name}.bias": (outputs,)} if has_bias else {}
    return {f"{name}.weight": (outputs, inputs)} | bias


def network(name: str, width: int, hidden: int, *, is_gated: bool) -> dict[str, tuple[int, ...]]:
    if not is_gated:
        return linear(f"{name}.fc1", width, hidden) | linear(f"{name}.fc2", hidden, width)
    shapes = linear(f"{name}.gate_proj", width, hidden, has_bias=False)
    shapes |= linear(f"{name}.up_proj", width, hidden, has_bias=False)
    return shapes | linear(f"{name}.down_proj", hidden, width, has_bias=False)


def experts(
    name: str, router: str, width: int, *, is_gated: bool, shared_width: int
) -> dict[str, tuple[int, ...]]:
    gate = "gate.weight" if router == "token_choice" else "gate_weight"
    shapes: dict[str, tuple[int, ...]] = {f"{name}.{gate}": (EXPERTS, width)}
    for expert in range(EXPERTS):
        shapes |= network(f"{name}.experts.{expert}", width, 4 * width, is_gated=is_gated)
    if shared_width:
        shapes |= network(f"{name}.shared_experts", width, shared_width, is_gated=is_gated)
    if router == "diffmoe":
        shapes |= linear(f"{name}.capacity_predictor.0", width, width)
        shapes |= linear(f"{name}.capacity_predictor.2", width, EXPERTS)
        shapes |= {f"{name}.expert_threshold": (EXPERTS,), f"{name}.ema_decay": (1,)}
    return shapes


def namespace(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**values)
