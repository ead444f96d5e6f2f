"""Wall time of whole pictures by how much the experts work, and by how they choose their tokens.

A class-conditional network with the weights that training begins with, one process. Its thresholds are
quantiles of each layer and expert, so that all experts take equally many tokens, as with the top K.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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


def name_of(capacity: float, rule: str) -> str:
    return f"{capacity} {rule}"


def draw_timed(contender: Contender, options: SamplingOptions, busy: list[float]) -> None:
    """Adds the processor's seconds, of all threads, to `busy`."""
    start = time.process_time()
    contender.draw(options)
    busy.append(time.process_time() - start)


def describe_cost(contender: Contender, options: SamplingOptions, *, is_static: bool) -> dict[str, object]:
    """Measured capacity, and operations of a picture."""
    drawn, pipeline = contender.draw(options), contender.pipeline
    sampling = replace(pipeline.config.sampling, selection="static" if is_static else "interval")
    cost = measure_cost(pipeline, sampling, drawn.loads, calls=drawn.calls, num_pictures=options.batch)
    return {"capacity": f"{cost.capacity:.3f}", "gflop": cost.flops / 1e9}


def bench_sampling(options: SamplingOptions) -> tuple[list[dict[str, object]], torch.device]:
    """A row for every model, capacity and rule, and the device that they were measured on.

    `over_capacity_1` is the ratio to the same rule at capacity 1, `over_static` that to the top K at equal
    capacity; both also by the processor's time, which other work on the machine hardly changes.
    """
    device = set_up_device(options.device, threads=options.threads)
    table: list[dict[str, object]] = []
    for every in options.every:
        contenders = build_contenders(options, device, every=every)
        busy: dict[str, list[float]] = {name_of(*key): [] for key in contenders}
        calls: dict[str, Callable[[], object]] = {
            name_of(*key): partial(draw_timed, contender, options, busy[name_of(*key)])
            for key, contender in contenders.items()
        }
        seconds = time_interleaved(calls, rounds=options.rounds, device=device)
        busy = {name: times[1:] for name, times in busy.items()}  # without the warm-up
        for (capacity, rule), contender in contenders.items():
            name, whole = name_of(capacity, rule), name_of(CAPACITIES[0], rule)
            static = name_of(capacity, "static")
            table.append(
                {
                    "every": every,
                    "rule": rule,
                    **describe_cost(contender, options, is_static=rule == "static"),
                    "ms": quartiles([1e3 * second / options.batch for second in seconds[name]]),
                    "over_capacity_1": ratios(seconds[name], seconds[whole]),
                    "over_static": ratios(seconds[name], seconds[static]),
                    "cpu_over_capacity_1": ratios(busy[name], busy[whole]),
                    "cpu_over_static": ratios(busy[name], busy[static]),
                }
            )
    return table, device
