"""Which of a run's figures are wrong, and what to try."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffmoe_scale.config.alarms import AlarmsConfig
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

Metrics = Mapping[str, MetricValue]
Found = Iterator[tuple[str, str]]
"""Name of an alarm; what is wrong, and what to try."""
NAMED = 8
OWN_WORK = {"data": "waits for data", "encode": "encodes"}
"""Phases in which no rank waits for another."""


@dataclass(frozen=True)
class Advice:
    """What helps with a kind of router."""

    balance: str
    """Evens out loads; what follows is another way."""
    greedy: str
    capacity: str
    """Sets how many tokens an expert takes."""


LOWER_RATE = "lower optimizer.learning_rate"
ADVICE = {
    "diffmoe": Advice(
        balance="raise moe.predictor_weight, ",
        greedy="calibrate the thresholds before sampling (tools/find_gamma.py)",
        capacity="moe.capacity",
    ),
    # Every expert takes as many tokens of each sample, in sampling too.
    "expert_choice": Advice(balance="", greedy=LOWER_RATE, capacity="moe.capacity"),
    "token_choice": Advice(balance="raise moe.balance_weight, ", greedy=LOWER_RATE, capacity="moe.top_k"),
    "dsmoe": Advice(balance="raise moe.bias_update_rate, ", greedy=LOWER_RATE, capacity="moe.top_k"),
    "expert_race": Advice(
        balance="raise moe.similarity_weight, ", greedy=LOWER_RATE, capacity="moe.capacity"
    ),
    "expert_threshold": Advice(
        balance="raise moe.threshold_warmup_steps, ",
        greedy="lower moe.threshold_decay, so that thresholds follow the scores",
        capacity="moe.capacity",
    ),
    # The last expert's load is the share of dropped captions, 0 in a batch without.
    "promoe": Advice(balance="raise moe.contrastive_weight, ", greedy=LOWER_RATE, capacity="moe.top_k"),
}
"""By `moe.router`."""


def count_extremes(metrics: Metrics, config: AlarmsConfig, blocks: Sequence[int]) -> dict[str, MetricValue]:
    """How many experts of each block are dead and greedy by the limits of alarms, for a line that observed
    them."""
    if "moe/health/overlap" not in metrics:
        return {}
    found = [extremes(metrics, config, block) for block in blocks]
    return {
        "moe/health/dead": [float(len(dead)) for dead, _ in found],
        "moe/health/greedy": [float(len(greedy)) for _, greedy in found],
    }


def extremes(metrics: Metrics, config: AlarmsConfig, block: int) -> tuple[list[int], list[int]]:
    """Dead and greedy experts: by the rule of inference where a predictor tells it, else as taken in
    training."""
    load_E = metrics.get(f"moe/deployed/{block}", metrics[f"moe/load/{block}"])
    assert isinstance(load_E, list)
    fair = _number(metrics, "moe/capacity")
    dead = [expert for expert, load in enumerate(load_E) if load < config.min_load * fair]
    greedy = [expert for expert, load in enumerate(load_E) if load > config.max_load * fair]
    return dead, greedy


class Alarms:
    """Warns when an alarm begins, and says when it is over. For the main rank only."""

    def __init__(self, config: AlarmsConfig, blocks: list[int], hosts: Sequence[str], *, router: str) -> None:
        """`blocks` have experts of `moe.router`; `hosts` are those of the ranks."""
        self._config, self._blocks, self._hosts = config, blocks, hosts
        self._advice = ADVICE[router]
        self._active: dict[str, set[str]] = {"ranks": set(), "experts": set()}

    def check(self, step: int, metrics: Metrics) -> None:
        """Judge the line of a log step."""
        self._note(step, "ranks", dict(self._of_ranks(metrics)))
        if step >= self._config.after and "moe/health/overlap" in metrics:
            self._note(step, "experts", dict([*self._of_loads(metrics), *self._of_layers(metrics)]))

    def _note(self, step: int, kind: str, found: Mapping[str, str]) -> None:
        for name, text in found.items():
            if name not in self._active[kind]:
                logger.warning("step %d, alarm %s: %s", step, name, text)
        for name in sorted(self._active[kind] - set(found)):
            logger.info("step %d, alarm %s is over", step, name)
        self._active[kind] = set(found)

    def _of_ranks(self, metrics: Metrics) -> Found:
        step_s = _number(metrics, "time/step_s")
        share = _number(metrics, "time/data_s") / step_s
        if share > self._config.max_data_share:
            yield (
                "data",
                f"ranks wait for data {share:.0%} of a step (alarms.max_data_share); raise data.workers, or "
                "cache features with tools/cache_features.py",
            )
        for phase, does in OWN_WORK.items():
            slowest_s = _number(metrics, f"time/slowest/{phase}_s")
            mean_s = _number(metrics, f"time/{phase}_s")
            if slowest_s - mean_s > self._config.max_straggle * step_s:
                rank = int(_number(metrics, f"time/slowest/{phase}_rank"))
                yield (
                    f"straggler/{phase}",
                    f"rank {rank} on {self._hosts[rank]} {does} {slowest_s:.2f} s a step, the mean "
                    f"rank {mean_s:.2f} s (alarms.max_straggle); look at that "
                    "node's disk, network and other processes",
                )

    def _of_loads(self, metrics: Metrics) -> Found:
        remedy = self._advice.balance
        for block in self._blocks:
            dead, greedy = extremes(metrics, self._config, block)
            if dead:
                yield (
                    f"dead/{block}",
                    f"{_experts(dead)} of block {block} would take less than {self._config.min_load:g} of a "
                    f"fair share of the tokens (alarms.min_load); {remedy}lower optimizer.learning_rate, or "
                    "go back to a checkpoint before it",
                )
            if greedy:
                yield (
                    f"greedy/{block}",
                    f"{_experts(greedy)} of block {block} would take more than {self._config.max_load:g} "
                    f"fair shares of the tokens (alarms.max_load); {remedy}or {self._advice.greedy}",
                )

    def _of_layers(self, metrics: Metrics) -> Found:
        config, capacity = self._config, self._advice.capacity
        rate = f"{LOWER_RATE}, or go back to a checkpoint before it"
        rules = [
            (
                "overlap",
                config.max_overlap,
                "of an expert's tokens another one takes too (alarms.max_overlap)",
                f"lower {capacity}, {rate}",
            ),
            (
                "uncovered",
                config.max_uncovered,
                "of the tokens no expert takes (alarms.max_uncovered)",
                f"raise {capacity}, {rate}",
            ),
            (
                "similarity",
                config.max_similarity,
                "cosine of two experts' router weights (alarms.max_similarity)",
                rate,
            ),
        ]
        for figure, limit, meaning, remedy in rules:
            for block, value in self._by_block(metrics, figure):
                if value > limit:
                    yield f"{figure}/{block}", f"block {block}: {value:.2f} {meaning}; {remedy}"
        trained = _number(metrics, "moe/capacity")
        for block, value in self._by_block(metrics, "deployed_capacity"):
            if abs(value - trained) > config.max_capacity_error:
                yield (
                    f"capacity/{block}",
                    f"block {block} would sample at capacity {value:.2f}, it trains at {trained:.2f} "
                    "(alarms.max_capacity_error); the predictor has not learned the selection: train on, "
                    "raise moe.predictor_weight, or sample by tools/find_gamma.py's gamma",
                )

    def _by_block(self, metrics: Metrics, figure: str) -> Iterator[tuple[int, float]]:
        values = metrics.get(f"moe/health/{figure}", [])
        assert isinstance(values, list)
        return zip(self._blocks, values, strict=False)


def _number(metrics: Metrics, name: str) -> float:
    value = metrics[name]
    assert isinstance(value, float)
    return value


def _experts(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:NAMED])) + (" ..." if len(numbers) > NAMED else "")
    return f"expert {named}" if len(numbers) == 1 else f"{counted(len(numbers), 'expert')} ({named})"
