"""Wall time of whole pictures at the points of a sweep of capacities."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from diffmoe_scale.bench.timing import quartiles, time_interleaved
from diffmoe_scale.evaluation.capacity_sweep import Asked
from diffmoe_scale.evaluation.sweep_results import Sweep
from diffmoe_scale.sampling.batch import generate_batch, number_requests
from diffmoe_scale.sampling.calibration import collect_prompts
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.thresholds import find_selection
from diffmoe_scale.words import counted


def time_points(pipeline: Pipeline, sweep: Sweep, *, rounds: int, batch: int) -> Sweep:
    """The sweep with the wall time of each point: batches of the same `batch` prompts are drawn at all points
    in turns, so that ratios hold."""
    requests = number_requests(collect_prompts(pipeline.config, batch), seed=1)
    calls: dict[str, Callable[[], object]] = {}
    for point in sweep.points:
        asked = Asked(point.asked_for, point.calibration)
        sampling = asked.sampling(pipeline.config.sampling)
        selection = find_selection(pipeline, sampling)
        calls[point.name] = partial(
            generate_batch, pipeline.networks, requests, sampling, selection=selection
        )
    device = pipeline.networks.device
    seconds = time_interleaved(calls, rounds=rounds, device=device)
    points = [
        replace(point, ms=quartiles([1e3 * second / batch for second in seconds[point.name]]))
        for point in sweep.points
    ]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = "" if device.type == "cuda" else f", {counted(torch.get_num_threads(), 'thread')}"
    return replace(sweep, points=points, timed_batch=batch, device=f"{where}{threads}")
