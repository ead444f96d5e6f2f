"""The thresholds by which experts work as much as was asked for, found by drawing pictures."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.data import DatasetConfig
from diffmoe_scale.config.sampling import SamplingConfig, check_capacity
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.build import open_reader
from diffmoe_scale.data.reading.reader import iterate_captions
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Request, generate_batches, number_requests
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.sampling.logit_counts import LogitCounts
from diffmoe_scale.sampling.ranks import Ranks

logger = logging.getLogger(__name__)

Kind = Literal["gamma", "quantile"]
TOLERANCE = 0.005
"""Other prompts add more to it: some hundredths."""
MAX_TRIALS = 24
LOGIT_PER_LOG, SHORTEST_STEP = 2.0, 0.05
"""Steps of the logit while all trials are on one side of the capacity: as long as the logarithm of their
ratio asks for with the first number, at least the second, and each twice as far as that."""
LARGEST_LOGIT = 30.0
"""Of a gamma of 1 - 1e-13: no predictor is as sure."""


@dataclass(frozen=True)
class Trial:
    """A threshold (or the share of its tokens that each expert leaves), and the average inference capacity
    (DiffMoE eq. 15) measured with it."""

    gamma: float
    capacity: float


@dataclass(frozen=True)
class Found:
    """The selection that gives the capacity asked for, and the trials that led there; the last is its own."""

    selection: Selection
    trials: list[Trial]

    @property
    def capacity(self) -> float:
        return self.trials[-1].capacity


def calibrate(
    model: Pipeline,
    prompts: Sequence[str | int],
    sampling: SamplingConfig,
    *,
    capacity: float,
    seed: int,
    kind: Kind = "gamma",
) -> Found:
    """Draws pictures of the prompts with one threshold after another; the last trial is within 0.005 of
    `capacity`. Collective over the model's ranks.

    `gamma` is one threshold for all. `quantile` is one for each layer and expert: what a share of the tokens
    stays below, the same share for all, in pictures drawn with the experts' top K.

    Raises: ValueError without a capacity predictor or for a capacity that no threshold gives, RunError if the
    search does not end.
    """
    asked = replace(sampling, selection="threshold", capacity=capacity)
    if not capacity > 0:
        raise ValueError(f"the capacity asked for is {capacity}; expected above 0")
    check_capacity(asked, model.config.moe)
    plain = replace(sampling, selection="static", capacity=0.0)
    requests = number_requests(prompts, seed=seed)
    counts = LogitCounts(model.networks.denoiser.moe_layers(), device=model.networks.device)
    with counts.counting():
        _measure(model, requests, plain, Selection("static"), title="capacity of the top K")
    parts = Ranks(model.context).gather(counts.counts_LEX.cpu())
    counts.counts_LEX = torch.stack(parts).sum(dim=0).to(counts.counts_LEX)

    def selection(gamma: float) -> Selection:
        if kind == "gamma":
            return Selection("interval", gamma=gamma)
        return Selection("interval", gamma_by_block=counts.quantiles(gamma))

    def measure(gamma: float) -> float:
        title = f"{kind} {gamma:.4g}"
        return _measure(model, requests, plain, selection(gamma), title=title)

    share = 1 - capacity / model.config.moe.num_experts
    start = counts.pooled_quantile(share) if kind == "gamma" else math.log(share / (1 - share))
    trials = search(measure, capacity, start=start, name=kind)
    return Found(selection(trials[-1].gamma), trials)


def _measure(
    model: Pipeline,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    selection: Selection,
    *,
    title: str,
) -> float:
    """The average inference capacity of the requests' pictures, a share of them by each rank. Collective."""
    ranks = Ranks(model.context)
    share = ranks.share(range(len(requests)))
    places = [*share.places, *[0] * (share.count - len(share.places))]
    loads = LoadByTime()
    for batch in generate_batches(
        model.networks,
        [requests[place] for place in places],
        sampling,
        selection=selection,
        title=title,
        has_progress=ranks.is_main,
    ):
        loads.merge(batch.loads)
    everything = LoadByTime()
    for part in ranks.gather(loads.on_cpu()):
        everything.merge(part)
    return everything.capacity


def search(
    measure: Callable[[float], float], capacity: float, *, start: float = 0.0, name: Kind = "gamma"
) -> list[Trial]:
    """Trials until one is within 0.005 of `capacity`, from the logit `start`: `measure` falls with gamma, the
    logarithm of what it gives nearly linearly with the logit of gamma (DiffMoE's table of thresholds), so
    intervals are cut there."""
    trials: list[Trial] = []
    over: Trial | None = None
    under: Trial | None = None
    logit, reach = start, 1.0
    while len(trials) < MAX_TRIALS:
        gamma = float(f"{1 / (1 + math.exp(-logit)):.6g}")  # as it will be printed
        trial = Trial(gamma, measure(gamma))
        trials.append(trial)
        logger.info("%s %.6g: average inference capacity %.3f", name, trial.gamma, trial.capacity)
        if abs(trial.capacity - capacity) <= TOLERANCE:
            return trials
        if trial.capacity > capacity:
            over = trial
        else:
            under = trial
        distance = abs(math.log(max(trial.capacity, 1e-3) / capacity))
        logit = _next_logit(over, under, capacity, step=reach * max(SHORTEST_STEP, LOGIT_PER_LOG * distance))
        reach *= 2
    nearest = min(trials, key=lambda trial: abs(trial.capacity - capacity))
    raise RunError(
        f"{MAX_TRIALS} trials found no {name} for capacity {capacity}; the nearest was "
        f"{nearest.capacity:.3f} at {name} {nearest.gamma:g}: train longer (the predictor's probabilities "
        "are too much alike), or draw more images"
    )


def _next_logit(over: Trial | None, under: Trial | None, capacity: float, *, step: float) -> float:
    if under is None:
        assert over is not None
        return min(_logit(over.gamma) + step, LARGEST_LOGIT)
    if over is None:
        return max(_logit(under.gamma) - step, -LARGEST_LOGIT)
    most, least = (math.log(max(trial.capacity, 1e-3)) for trial in (over, under))
    share = (most - math.log(capacity)) / (most - least)
    # Not at an end of the interval: each trial must shorten it.
    share = min(max(share, 0.1), 0.9)
    return _logit(over.gamma) * (1 - share) + _logit(under.gamma) * share


def _logit(gamma: float) -> float:
    gamma = min(max(gamma, 1e-12), 1 - 1e-12)
    return math.log(gamma / (1 - gamma))


def collect_prompts(config: Config, count: int) -> list[str] | list[int]:
    """`count` captions of the run's validation shards, else of its training shards; in class mode labels,
    evenly spread.

    Raises: ValueError as `open_reader`, also for a command ("pipe:...") that only RUN/config.yaml names.
    """
    if config.model.conditioning == "class":
        return [i * config.model.num_classes // count for i in range(count)]
    shards = config.data.validation or config.data.train
    captions = list(iterate_captions(open_reader(config, shards), count))
    return (captions * math.ceil(count / max(1, len(captions))))[:count]


def shard_names(patterns: Sequence[str | DatasetConfig]) -> list[str]:
    """The patterns of `data.train` or `data.validation`, those of mixed data sets too."""
    return [
        name for pattern in patterns for name in ([pattern] if isinstance(pattern, str) else pattern.shards)
    ]
