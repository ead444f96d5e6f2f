"""Operations of the variants, which must be equal, and the time that a study takes."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffmoe_scale.config.study import StudyConfig
from diffmoe_scale.plan.flops import count_flops
from diffmoe_scale.study.record import RowResult
from diffmoe_scale.study.variants import Row, Variant
from diffmoe_scale.words import counted

ASSUMED_FLOPS = 3.0e10
"""Operations that a core is taken to do in a second while no row was measured."""
ASSUMED_START_S = 40.0
"""Seconds that the three processes of a row take to start."""


@dataclass(frozen=True)
class Cost:
    """Operations of a variant: of the network for a picture, forward, and of a training sample."""

    forward: float
    training: float


def find_costs(config: StudyConfig, variants: Sequence[Variant]) -> dict[str, Cost]:
    """By variant, captions at full length. Raises: ValueError for one that costs more or less than
    study.flops_tolerance allows, or that cannot be built, naming it."""
    costs = {}
    for variant in variants:
        try:
            flops = count_flops(variant.config)
        except ValueError as error:
            raise ValueError(f"variant {variant.name}: {error}") from error
        costs[variant.name] = Cost(sum(flops.forward.values()), flops.model)
    tolerance = config.study.flops_tolerance
    for name in costs:
        deviation = deviation_of(costs, name, config.baseline)
        if abs(deviation) > tolerance:
            raise ValueError(
                f"variant {name} has {100 * deviation:+.1f} % operations a picture against "
                f"{config.baseline}; expected at most {100 * tolerance:g} % (study.flops_tolerance): make it "
                "wider, narrower, deeper or shallower"
            )
    return costs


def deviation_of(costs: Mapping[str, Cost], name: str, baseline: str) -> float:
    """Relative difference of the operations of a picture."""
    return costs[name].forward / costs[baseline].forward - 1


def describe_costs(costs: Mapping[str, Cost], baseline: str) -> list[str]:
    """A line a variant."""
    longest = max(map(len, costs))
    lines = [f"operations of a picture, against {baseline}, and of a training sample"]
    for name, cost in costs.items():
        deviation = 100 * deviation_of(costs, name, baseline)
        training = 100 * (cost.training / costs[baseline].training - 1)
        lines.append(
            f"  {name:{longest}}  {cost.forward / 1e6:8.1f} M {deviation:+6.2f} %"
            f"  {cost.training / 1e6:8.1f} M {training:+6.2f} %"
        )
    return lines


def estimate_seconds(row: Row, cost: Cost, done: Sequence[RowResult]) -> float:
    """Of a row from the beginning: as other rows took for their operations, or by ASSUMED_FLOPS."""
    rates = [
        result.seconds["training"] / (result.steps * result.training_flops)
        for result in done
        if result.seconds["training"]
    ]
    rate = statistics.median(rates) if rates else row.variant.config.run.global_batch / ASSUMED_FLOPS
    seconds = rate * row.config.run.steps * cost.training
    scoring = [result.total_seconds - result.seconds["training"] for result in done]
    if scoring:
        return seconds + statistics.median(scoring)
    checkpoints = row.config.run.steps // row.config.checkpoint.every
    pictures = 6 * (row.study.prompts + max(0, checkpoints - 1) * row.study.curve_prompts)
    calls = row.config.sampling.steps * (2 if row.config.sampling.guidance > 1 else 1)
    return seconds + pictures * calls * cost.forward / ASSUMED_FLOPS + ASSUMED_START_S


def describe_plan(
    config: StudyConfig, rows: Sequence[Row], costs: Mapping[str, Cost], done: Sequence[RowResult]
) -> list[str]:
    """How much there is to do, and about how long it takes."""
    finished = {result.fingerprint for result in done}
    waiting = [row for row in rows if row.fingerprint not in finished]
    trained = {result.training for result in done}
    trainings = {row.run: row for row in waiting if row.training not in trained}
    seconds = sum(
        estimate_seconds(row, costs[row.variant.name], done)
        if trainings.get(row.run) is row
        else ASSUMED_START_S
        for row in waiting
    )
    at_once = min(config.study.at_once, max(1, len(waiting)), os.cpu_count() or 1)
    steps = sum(row.config.run.steps for row in trainings.values())
    source = "as the rows that are done took" if done else "on idle cores, before a row was measured"
    return [
        f"{counted(len(rows), 'row')} ({counted(len({row.variant.name for row in rows}), 'variant')} x "
        f"{counted(len({row.seed for row in rows}), 'seed')}), {len(waiting)} to do",
        f"{counted(len(trainings), 'training')} of {counted(rows[0].config.run.steps, 'step', ',')}: "
        f"{counted(steps, 'step', ',')} of {rows[0].config.run.global_batch} pictures",
        f"about {duration(seconds / at_once)} with {at_once} at once ({source}), "
        f"{duration(seconds / max(1, len(waiting)))} a row",
    ]


def duration(seconds: float) -> str:
    """As a reader says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
