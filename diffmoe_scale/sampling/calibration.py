"""The constant threshold `sampling.gamma` of the rule `interval` that makes experts work as much as was asked
for."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.data import DatasetConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import iterate_captions
from diffmoe_scale.sampling.batch import number_requests
from diffmoe_scale.sampling.generate import generate_batches
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime

logger = logging.getLogger(__name__)

TOLERANCE = 0.01
MAX_TRIALS = 24
LOGIT_STEP = 2.0


@dataclass(frozen=True)
class Trial:
    """A threshold, and the average inference capacity (DiffMoE eq. 15) measured with it."""

    gamma: float
    capacity: float


def find_gamma(
    model: Pipeline, prompts: Sequence[str | int], sampling: SamplingConfig, *, capacity: float, seed: int
) -> list[Trial]:
    """Draws pictures of the prompts with one gamma after another; the last trial is within 0.01 of
    `capacity`.

    Half of the 0.02 that other prompts may be off by. Raises: ValueError without a capacity predictor or for
    a capacity that no gamma gives, RunError if the search does not end.
    """
    moe = model.config.moe
    if moe.num_experts == 0 or moe.router != "diffmoe":
        what = "a dense model" if moe.num_experts == 0 else f"moe.router {moe.router!r}"
        raise ValueError(
            f"{model.directory.path} is {what}, without a capacity predictor; sampling.selection 'interval' "
            "needs moe.router 'diffmoe'"
        )
    if not 0 < capacity < moe.num_experts:
        raise ValueError(
            f"the capacity asked for is {capacity}; expected above 0 and below moe.num_experts "
            f"({moe.num_experts})"
        )

    requests = number_requests(prompts, seed=seed)

    def measure(gamma: float) -> float:
        chosen = replace(sampling, selection="interval", gamma=gamma)
        loads = LoadByTime()
        for batch in generate_batches(model.networks, requests, chosen, title=f"gamma {gamma:.4g}"):
            loads.merge(batch.loads)
        return loads.capacity

    return search(measure, capacity)


def search(measure: Callable[[float], float], capacity: float) -> list[Trial]:
    """Trials until one is within 0.01 of `capacity`: `measure` falls with gamma, the logarithm of what it
    gives nearly linearly with the logit of gamma (DiffMoE's table of thresholds), so intervals are cut
    there."""
    trials: list[Trial] = []
    over: Trial | None = None
    under: Trial | None = None
    logit = 0.0
    while len(trials) < MAX_TRIALS:
        gamma = float(f"{1 / (1 + math.exp(-logit)):.6g}")  # as it will be printed
        trial = Trial(gamma, measure(gamma))
        trials.append(trial)
        logger.info("gamma %.6g: average inference capacity %.3f", trial.gamma, trial.capacity)
        if abs(trial.capacity - capacity) <= TOLERANCE:
            return trials
        if trial.capacity > capacity:
            over = trial
        else:
            under = trial
        logit = _next_logit(over, under, capacity)
    nearest = min(trials, key=lambda trial: abs(trial.capacity - capacity))
    raise RunError(
        f"{MAX_TRIALS} trials found no gamma for capacity {capacity}; the nearest was "
        f"{nearest.capacity:.3f} at gamma {nearest.gamma:g}: train longer (the predictor's probabilities are "
        "too much alike), or draw more images"
    )


def _next_logit(over: Trial | None, under: Trial | None, capacity: float) -> float:
    if under is None:
        assert over is not None
        return _logit(over.gamma) + LOGIT_STEP
    if over is None:
        return _logit(under.gamma) - LOGIT_STEP
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

    Raises: ValueError as `build_reader`, also for a command ("pipe:...") that only RUN/config.yaml names.
    """
    if config.model.conditioning == "class":
        return [i * config.model.num_classes // count for i in range(count)]
    shards = config.data.validation or config.data.train
    reader = build_reader(
        config.data, shards, model=config.model, seed=config.run.seed, buckets=config.buckets
    )
    captions = list(iterate_captions(reader, count))
    return (captions * math.ceil(count / max(1, len(captions))))[:count]


def shard_names(patterns: Sequence[str | DatasetConfig]) -> list[str]:
    """The patterns of `data.train` or `data.validation`, those of mixed data sets too."""
    return [
        name for pattern in patterns for name in ([pattern] if isinstance(pattern, str) else pattern.shards)
    ]
