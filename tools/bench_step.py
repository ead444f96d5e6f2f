"""A training step of a whole model with experts against the dense model of equal activated parameters, and
research code's loop.

    python tools/bench_step.py --threads 2 --width 384 --depth 4 --batch 32 --output step.json

A class-conditional network on random latents, one process, torch's AdamW. The dense model's step updates
fewer weights: `forward+backward` leaves the update out, `step` has it. On CPU freed memory is kept, as in
training, for all contenders alike.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffmoe_scale.bench.timing import (
    format_table,
    measure_memory,
    quartiles,
    ratios,
    time_interleaved,
    write_result,
)
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.initialization import initialize_transformer
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import keep_freed_memory
from diffmoe_scale.train.loss import mean_auxiliary_losses

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # python puts tools/ there
from tools.bench_layer import DTYPES, layer_settings, scatter_loop

PHASES = ("forward+backward", "step", "inference")
CHANNELS, PATCH, CLASSES = 4, 2, 10


def build_model(parsed: argparse.Namespace, device: torch.device, moe: MoEConfig) -> DiffusionTransformer:
    """Its weights begin equal in every contender, experts apart."""
    config = ModelConfig(
        conditioning="class",
        num_classes=CLASSES,
        channels=CHANNELS,
        patch_size=PATCH,
        depth=parsed.depth,
        width=parsed.width,
        heads=max(1, parsed.width // 64),
    )
    model = DiffusionTransformer(
        config,
        moe,
        latent_size=parsed.latent_size,
        output_channels=CHANNELS,
        text_width=0,
        pooled_width=0,
        groups=single_rank_groups(),
    )
    initialize_transformer(model, 0)
    return model.to(device, DTYPES[parsed.dtype])


def build_models(parsed: argparse.Namespace, device: torch.device) -> dict[str, DiffusionTransformer]:
    """The dense model, research code's loop, and every backend that the device can run."""
    models = {"dense": build_model(parsed, device, MoEConfig(num_experts=0))}
    for name, settings in ({"scatter_loop": {"backend": "loop"}} | layer_settings(device)).items():
        models[name] = build_model(
            parsed, device, MoEConfig(num_experts=parsed.experts, every=parsed.every, **settings)
        )
    for layer in models["scatter_loop"].moe_layers():
        layer.forward = partial(scatter_loop, layer)  # type: ignore[method-assign]  # an attribute of the object hides the method
    return models


def predict(model: DiffusionTransformer, x_BCHW: Tensor, selection: Selection) -> Prediction:
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
    for layer, routing in zip(
        model.moe_layers(), predict(model, x_BCHW, Selection("train")).routings, strict=True
    ):
        layer.router.predictor.update_threshold(routing.kth_probability_E)


def bench(parsed: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """A row for every phase and contender."""
    models = build_models(parsed, device)
    shape = parsed.batch, CHANNELS, parsed.latent_size, parsed.latent_size
    x_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    # No rate: the weights stay, so that every call routes alike.
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        for name, model in models.items()
    }
    num_tokens = parsed.batch * (parsed.latent_size // PATCH) ** 2
    table: list[dict[str, object]] = []
    for phase in PHASES:
        if phase == "inference":
            for model in models.values():
                set_thresholds(model, x_BCHW)
        calls: dict[str, Callable[[], None]] = {
            name: partial(run_phase, model, optimizers[name], x_BCHW, phase) for name, model in models.items()
        }
        seconds = time_interleaved(calls, rounds=parsed.rounds, device=device)
        for name, times in seconds.items():
            ms = quartiles([1e3 * second for second in times])
            row: dict[str, object] = {
                "phase": phase,
                "contender": name,
                "ms": ms,
                "tokens_per_s": 1e3 * num_tokens / ms["median"],
            }
            table.append(
                row | {"over_dense": ratios(times, seconds["dense"])} | measure_memory(calls[name], device)
            )
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=384, help="model width (384)")
    parser.add_argument("--depth", type=int, default=4, help="blocks (4)")
    parser.add_argument("--experts", type=int, default=16, help="experts of an MoE layer (16)")
    parser.add_argument("--every", type=int, default=2, help="an MoE layer in every n-th block (2)")
    parser.add_argument("--batch", type=int, default=16, help="samples (16)")
    parser.add_argument(
        "--latent-size", type=int, default=32, help="height and width of the latents; a token is 2 by 2 (32)"
    )
    parser.add_argument(
        "--rounds", type=int, default=8, help="counted rounds; each times every contender once (8)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="format of weights and activations (fp32)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(cuda if there is one)",
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    parsed = parser.parse_args(arguments)
    for name in ("width", "depth", "experts", "every", "batch", "rounds", "threads"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} is {getattr(parsed, name)}; expected at least 1")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    torch.set_num_threads(parsed.threads)
    device = torch.device(parsed.device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        table = bench(parsed, device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(table))
    if parsed.output is not None:
        write_result(
            parsed.output,
            device,
            settings={name: str(value) for name, value in vars(parsed).items()},
            table=table,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
