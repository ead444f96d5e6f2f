"""The matrices of the hidden layers, which Muon updates: the parts of fused layers, and experts, are matrices
of their own."""

import re
from dataclasses import dataclass

from torch import nn

from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.nn.feed_forward import FeedForward

HIDDEN = re.compile(r"(transformer|text_encoder)\.blocks\.|transformer\.shared_modulation\.")
"""Canonical names of hidden layers. First and last layers, embeddings of every kind and the final modulation
are outside of them."""
SQUARES = ("qkv", "text_qkv", "modulation", "text_modulation", "shared_modulation")
"""Layers that hold square matrices, one above the other."""


@dataclass(frozen=True)
class Stack:
    """`count` matrices [rows, columns], one after the other in the flat order of a parameter."""

    count: int
    rows: int
    columns: int


def hidden_matrices(denoiser: Denoiser) -> dict[int, Stack]:
    """By the parameter's id, the matrices of this rank that Muon updates: of self-attention three,
    of cross-attention's keys and values two, of a modulation as many as it has shifts, scales and gates, of
    SwiGLU's first layer two, and one or two for each expert. Routers and their predictors are none."""
    routers = {id(parameter) for layer in denoiser.moe_layers() for parameter in layer.router.parameters()}
    tables = {id(parameter) for parameter in denoiser.embeddings()}
    gated = _gated_layers(denoiser)
    return {
        id(parameter): _stack(name, parameter, is_gated=id(parameter) in gated)
        for name, parameter in denoiser.canonical_parameters().items()
        if HIDDEN.match(name) and _is_weight(name, parameter) and id(parameter) not in routers | tables
    }


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    # Biases of experts that lie in one parameter have two dimensions.
    return parameter.dim() >= 2 and name.rpartition(".")[2] in ("weight", "w_in", "w_out")


def _gated_layers(denoiser: Denoiser) -> set[int]:
    """Ids of weights that hold gate and value of SwiGLU."""
    gated = {
        id(module.w_in.weight)
        for module in denoiser.modules()
        if isinstance(module, FeedForward) and module.is_gated
    }
    for layer in denoiser.moe_layers():
        if layer.experts.config.gated_linear_unit:
            gated |= {
                id(parameter) for name, parameter in layer.expert_parameters() if name.endswith(".w_in")
            }
    return gated


def _stack(name: str, parameter: nn.Parameter, *, is_gated: bool) -> Stack:
    rows, columns = parameter.shape[-2:]
    layer = name.removesuffix(".weight").rpartition(".")[2]
    parts = 1
    if layer in SQUARES:
        parts = rows // columns
    elif layer == "key_value" or is_gated:
        parts = 2
    assert rows % parts == 0, f"{name} of {rows} rows does not hold {parts} matrices"
    return Stack(count=parts * (parameter.numel() // (rows * columns)), rows=rows // parts, columns=columns)
