"""Operations of a picture, for what its experts did."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch

from diffmoe_scale.config.routers import WITH_POOL
from diffmoe_scale.config.schema import Config
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.plan.build import (
    META,
    build_denoiser,
    even_routing,
    keep_distinct_blocks,
    plain_experts,
    step_inputs,
)
from diffmoe_scale.plan.flops import FlopCounter

UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
SIDES_OF_GUIDANCE = 2
"""Captions are encoded once for a picture, and once for what guidance leads away from."""


@dataclass(frozen=True)
class CallFlops:
    """Operations of one picture: of a call of the network without its experts, of all experts in a call at
    capacity 1, and of encoding a caption by a text encoder that was trained along.

    Captions have their full length. What decodes latents, and frozen text encoders, are left out.
    """

    network: float
    experts: float
    caption: float

    def of_picture(self, *, calls: float, capacity_of_calls: float) -> float:
        """Of `calls` of the network; `capacity_of_calls` is the sum of their capacities."""
        return SIDES_OF_GUIDANCE * self.caption + calls * self.network + capacity_of_calls * self.experts


def count_call_flops(
    config: Config, *, latent_shape: tuple[int, int, int], has_predictor: bool = True
) -> CallFlops:
    """For pictures of latents [C, H, W]; the top K (`static`) is found without a predictor.

    Raises: as `build.build_denoiser`.
    """
    plain = even_routing(plain_experts(config))
    if plain.moe.router in WITH_POOL:
        plain = replace(plain, moe=replace(plain.moe, pool="rank", capacity=1.0, capacity_by_resolution=()))
    network = build_denoiser(plain)
    layers = network.moe_layers()
    patch = network.transformer.patch
    num_tokens = latent_shape[1] // patch * (latent_shape[2] // patch)
    # A pool needs as many tokens as experts.
    count = max(1, math.ceil(config.moe.num_experts / num_tokens))
    expert = sum(
        parameter.numel()
        for layer in layers
        for name, parameter in layer.expert_parameters()
        if name.startswith("experts.0.w")
    )
    numbers = Counter(keep_distinct_blocks(network))
    network.to(NUMBER_FORMATS[config.model.precision])
    _, time_B, condition = step_inputs(plain, count)
    x_BCHW = torch.empty(count, *latent_shape, device=META)
    with FlopCounter(numbers) as counter, counter.parts_of(network):
        network(x_BCHW, time_B, condition, Selection())
    parts: Counter[str] = Counter()
    for product, (ahead, _) in counter.products.items():
        parts[product.part] += ahead
    caption, _ = parts.pop("text encoder", 0), parts.pop("experts", 0)
    parts.pop("target heads", 0)
    if not has_predictor:
        parts.pop("capacity predictors", 0)
    return CallFlops(
        network=sum(parts.values()) / count, experts=2.0 * expert * num_tokens, caption=caption / count
    )


def format_flops(number: float) -> str:
    """Such as `3.21 GFLOP`, of 2 operations a multiplication with addition."""
    size, unit = next((entry for entry in UNITS if number >= entry[0]), UNITS[-1])
    return f"{number / size:.3g} {unit}"
