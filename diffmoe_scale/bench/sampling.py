"""Wall time of whole pictures by how much the experts work, and by how they choose their tokens.

A class-conditional network with the weights that training begins with, one process. Its thresholds are
quantiles of each layer and expert, so that all experts take equally many tokens, as with the top K.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from diffmoe_scale.bench.contenders import set_up_device
from diffmoe_scale.bench.options import SamplingOptions
from diffmoe_scale.bench.timing import quartiles, ratios, time_interleaved
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Generated, generate_batch, number_requests
from diffmoe_scale.sampling.calibration import calibrate
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.loading import Pipeline

CAPACITIES = (1.0, 0.5)
PATCH, CLASSES = 2, 10


@dataclass(frozen=True)
class Contender:
    """A model, and how its experts choose."""

    pipeline: Pipeline
    selection: Selection

    def draw(self, options: SamplingOptions) -> Generated:
        requests = number_requests([number % CLASSES for number in range(options.batch)], seed=0)
        sampling = self.pipeline.config.sampling
        return generate_batch(self.pipeline.networks, requests, sampling, selection=self.selection)


def build_pipeline(
    options: SamplingOptions, device: torch.device, *, every: int, capacity: float
) -> Pipeline:
    """Of equal weights for every capacity, which is that of the top K."""
    config = Config(
        model=ModelConfig(
            conditioning="class",
            num_classes=CLASSES,
            image_size=options.latent_size,
            patch_size=PATCH,
            depth=options.depth,
            width=options.width,
            heads=max(1, options.width // 64),
        ),
        moe=MoEConfig(num_experts=options.experts, every=every, capacity=capacity),
        sampling=SamplingConfig(steps=options.steps, guidance=options.guidance, batch=options.batch),
    )
    networks = build_networks(
        config, tokenizer_path=Path("unused"), groups=single_rank_groups(), device=device
    )
    return Pipeline(networks, config, RunDirectory(Path("unused")), Path("unused"), 0)


def build_contenders(
    options: SamplingOptions, device: torch.device, *, every: int
) -> dict[tuple[float, str], Contender]:
    """By capacity and rule."""
    found = {}
    labels: list[str | int] = [number % CLASSES for number in range(options.batch)]
    for capacity in CAPACITIES:
        pipeline = build_pipeline(options, device, every=every, capacity=capacity)
        sampling = pipeline.config.sampling
        thresholds = calibrate(
            pipeline, labels, sampling, capacity=capacity, seed=0, kind="quantile"
        ).selection
        found[capacity, "threshold"] = Contender(pipeline, thresholds)
        found[capacity, "static"] = Contender(pipeline, Selection("static"))
    return found


def bench_sampling(options: SamplingOptions) -> tuple[list[dict[str, object]], torch.device]:
    """A row for every model, capacity and rule, and the device that they were measured on.

    `over_capacity_1` is the ratio to the same rule at capacity 1, `over_static` that to the top K at equal
    capacity.
    """
    device = set_up_device(options.device, threads=options.threads)
    table: list[dict[str, object]] = []
    for every in options.every:
        contenders = build_contenders(options, device, every=every)
        calls: dict[str, Callable[[], object]] = {
            f"{capacity} {rule}": partial(contender.draw, options)
            for (capacity, rule), contender in contenders.items()
        }
        seconds = time_interleaved(calls, rounds=options.rounds, device=device)
        for (capacity, rule), contender in contenders.items():
            times = seconds[f"{capacity} {rule}"]
            drawn, pipeline = contender.draw(options), contender.pipeline
            selection: Literal["static", "interval"] = "static" if rule == "static" else "interval"
            sampling = replace(pipeline.config.sampling, selection=selection)
            cost = measure_cost(
                pipeline, sampling, drawn.loads, calls=drawn.calls, num_pictures=options.batch
            )
            table.append(
                {
                    "every": every,
                    "rule": rule,
                    "capacity": f"{cost.capacity:.3f}",
                    "gflop": cost.flops / 1e9,
                    "ms": quartiles([1e3 * second / options.batch for second in times]),
                    "over_capacity_1": ratios(times, seconds[f"{CAPACITIES[0]} {rule}"]),
                    "over_static": ratios(times, seconds[f"{capacity} static"]),
                }
            )
    return table, device
