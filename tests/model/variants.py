"""Any combination of the network's switches, drawn from a seed."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from random import Random

import torch

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.routers import RULES
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS, Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.initialization import initialize_weights
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.build import build_denoiser

SAMPLES, TOKENS_A_SIDE = 3, 4
CHOICES: dict[str, tuple[object, ...]] = {
    "model.conditioning": ("text", "text", "class"),
    "model.attention": ("cross", "joint"),
    "model.positions": ("sincos", "rope2d"),
    "model.qk_norm": ("none", "rms"),
    "model.modulation": ("block", "shared"),
    "model.text_projection": (True, False),
    "model.size_conditioning": (True, False),
    "model.depth": (1, 2, 3, 4, 5),
    "model.heads": (1, 2, 4),
    "model.feed_forward_ratio": (0.5, 1.0, 2.6),
    "model.activation_checkpointing": ("none", "blocks", "experts"),
    "moe.num_experts": (0, 2, 4, 8),
    "moe.every": (1, 1, 2, 3),
    "moe.first_dense": (0, 0, 1, 2),
    "moe.router": ("diffmoe", "diffmoe", *RULES),
    "moe.pool": ("sample", "rank", "data_parallel"),
    "moe.capacity": (0.6, 1.0, 2.0),
    "moe.top_k": (1, 2),
    "moe.gate": ("softmax", "sigmoid", "identity"),
    "moe.router_input": ("modulated", "decoupled"),
    "moe.shared_experts": (0, 1, 2),
    "moe.expert_width_ratio": (0.25, 0.5, 1.0, 4.0),
    "moe.activation": ("gelu", "swiglu"),
    "moe.backend": ("loop", "grouped"),
}
FIXED = [
    "model.width=32",
    f"model.image_size={4 * TOKENS_A_SIDE}",
    "text.width=16",
    "text.heads=2",
    "text.depth=1",
    "text.vocabulary=260",
    "sampling.selection=static",
    "moe.router_init_std=0.5",
]


def draw_words(seed: int) -> list[str]:
    """A value for each switch, whether they fit each other or not."""
    random = Random(seed)
    drawn = {name: random.choice(values) for name, values in CHOICES.items()}
    words = [*FIXED, *(f"{name}={str(value).lower()}" for name, value in drawn.items())]
    return [*words, "model.num_classes=10"] if drawn["model.conditioning"] == "class" else words


def valid_configs(*, first: int = 0) -> Iterator[tuple[int, Config]]:
    """Seeds from `first` on whose switches fit each other, and their configs."""
    for seed in count(first):
        with suppress(ValueError):
            yield seed, load_config(None, draw_words(seed))


def make_denoiser(config: Config, *, seed: int = 0, parallel: ParallelContext | None = None) -> Denoiser:
    """Built on `meta`, then with weights that no zero switches off; the same in every layout of ranks."""
    denoiser = build_denoiser(config, None if parallel is None else parallel.megatron_groups)
    initialize_weights(denoiser, seed)
    with torch.no_grad():
        for name, parameter in denoiser.canonical_parameters().items():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=named_generator(seed, name)))
    return denoiser


def predict(denoiser: Denoiser, config: Config, *, seed: int = 0) -> Prediction:
    """For captions of different length (or classes), with the training rule."""
    generator = torch.Generator().manual_seed(seed)
    size = config.model.image_size
    x_BCHW = torch.randn(SAMPLES, 3, size, size, generator=generator)
    time_B = torch.rand(SAMPLES, generator=generator)
    sizes_BZ = torch.full((SAMPLES, NUM_SIZE_CONDITIONS), float(size))
    if config.model.conditioning == "class":
        condition = Condition(torch.randint(0, 11, (SAMPLES,), generator=generator), sizes_BZ)
    else:
        lengths = torch.arange(SAMPLES)[:, None] + 2
        tokens_BL = torch.randint(3, 260, (SAMPLES, 6), generator=generator)
        condition = Condition(
            None,
            sizes_BZ,
            tokens_BL=tokens_BL.where(torch.arange(6) < lengths, 0),
            dropped_B=torch.arange(SAMPLES) == 1,
        )
    prediction: Prediction = denoiser(x_BCHW, time_B, condition, Selection("train"))
    return prediction


def total_loss(prediction: Prediction) -> torch.Tensor:
    auxiliary = [loss for routing in prediction.routings for loss in routing.aux_losses.values()]
    values = [prediction.value_BCHW, *prediction.layer_values]
    return sum([value.square().mean() for value in values] + auxiliary, start=torch.zeros(()))
