"""A training step of a whole model with experts against the dense model of equal activated parameters, and
research code's loop.

A class-conditional network on random latents, one process, torch's AdamW.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffmoe_scale.bench.contenders import layer_configs, scatter_loop, set_up_device
from diffmoe_scale.bench.options import StepOptions
from diffmoe_scale.bench.timing import measure_memory, quartiles, ratios, time_interleaved
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.model.compilation import compile_blocks
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.initialization import initialize_transformer
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.train.loss import mean_auxiliary_losses

PHASES = ("forward+backward", "step", "inference")
CHANNELS, PATCH, CLASSES = 4, 2, 10


def build_model(options: StepOptions, device: torch.device, moe: MoEConfig) -> DiffusionTransformer:
    """Its weights begin equal in every contender, experts apart."""
    config = ModelConfig(
        conditioning="class",
        num_classes=CLASSES,
        channels=CHANNELS,
        patch_size=PATCH,
        depth=options.depth,
        width=options.width,
        heads=max(1, options.width // 64),
    )
    model = DiffusionTransformer(
        config,
        moe,
        latent_size=options.latent_size,
        output_channels=CHANNELS,
        text_streams=(),
        groups=single_rank_groups(),
    )
    initialize_transformer(model, 0)
    return model.to(device, NUMBER_FORMATS[options.dtype])


def build_models(options: StepOptions, device: torch.device) -> dict[str, DiffusionTransformer]:
    """The dense model, research code's loop, and every backend that the device can run."""
    moe = MoEConfig(num_experts=options.experts, every=options.every)
    configs = layer_configs(moe, device)
    configs = {"dense": MoEConfig(num_experts=0), "scatter_loop": configs["loop"]} | configs
    models = {name: build_model(options, device, config) for name, config in configs.items()}
    if options.is_compiled:
        models["compiled"] = build_model(options, device, configs["grouped"])
        compile_blocks(models["compiled"])
    for layer in models["scatter_loop"].moe_layers():
        # An attribute of the object hides the method.
        layer.forward = partial(scatter_loop, layer)  # type: ignore[method-assign]  # on purpose
    return models


def predict(model: DiffusionTransformer, x_BCHW: Tensor, selection: Selection) -> Prediction:
    """Of a batch with a time and a class for each sample."""
    batch, device = len(x_BCHW), x_BCHW.device
    prediction: Prediction = model(
        x_BCHW,
        torch.linspace(0, 1000, batch, device=device),
        Condition(labels_B=torch.arange(batch, device=device) % CLASSES),
        selection,
    )
    return prediction


def run_phase(
    model: DiffusionTransformer, optimizer: torch.optim.Optimizer, x_BCHW: Tensor, phase: str
) -> None:
    """One call; its gradients are gone afterwards."""
    if phase == "inference":
        with torch.no_grad():
            predict(model, x_BCHW, Selection("threshold"))
        return
    prediction = predict(model, x_BCHW, Selection("train"))
    loss = (prediction.value_BCHW - x_BCHW).square().mean()
    (loss + sum(mean_auxiliary_losses(prediction.routings).values())).backward()
    if phase == "step":
        optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def set_thresholds(model: DiffusionTransformer, x_BCHW: Tensor) -> None:
    """Thresholds of one training pass over the same batch, for a capacity near 1 at inference."""
    routings = predict(model, x_BCHW, Selection("train")).routings
    for layer, routing in zip(model.moe_layers(), routings, strict=True):
        layer.router.predictor.update_threshold(routing.statistic_X)


def bench_step(options: StepOptions) -> tuple[list[dict[str, object]], torch.device]:
    """A row for every phase and contender, and the device that they were measured on."""
    device = set_up_device(options.device, threads=options.threads)
    models = build_models(options, device)
    shape = options.batch, CHANNELS, options.latent_size, options.latent_size
    x_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    # No rate: the weights stay, so that every call routes alike.
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        for name, model in models.items()
    }
    num_tokens = options.batch * (options.latent_size // PATCH) ** 2
    table: list[dict[str, object]] = []
    for phase in PHASES:
        if phase == "inference":
            for model in models.values():
                set_thresholds(model, x_BCHW)
        calls: dict[str, Callable[[], None]] = {
            name: partial(run_phase, model, optimizers[name], x_BCHW, phase) for name, model in models.items()
        }
        seconds = time_interleaved(calls, rounds=options.rounds, device=device)
        for name, times in seconds.items():
            ms = quartiles([1e3 * second for second in times])
            row = {
                "phase": phase,
                "contender": name,
                "ms": ms,
                "tokens_per_s": 1e3 * num_tokens / ms["median"],
                "over_dense": ratios(times, seconds["dense"]),
            }
            table.append(row | measure_memory(calls[name], device))
    return table, device
