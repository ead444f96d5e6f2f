"""What is known of a row: typed, as JSON in OUTPUT/rows/ROW.json, and of all rows in results.jsonl."""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.harness.result import RESULT, read_result
from diffmoe_scale.files import replace_file
from diffmoe_scale.study.commands import CURVE, LAST, checkpoints_to_score
from diffmoe_scale.study.variants import Row
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.fixed_times import rules_of

logger = logging.getLogger(__name__)

SCORER = "exact rule"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of a checkpoint, by the six suites: shares between 0 and 1, and the mean over them."""

    step: int
    prompts: int
    """Of each suite."""
    mean: float
    suites: dict[str, float]
    capacity: float
    """Average inference capacity (DiffMoE eq. 15)."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """The numbers of a variant with a seed."""

    variant: str
    seed: int
    fingerprint: str
    training: str
    run: str
    steps: int
    rule: str
    """How experts chose for the losses: the rule of drawing pictures."""
    losses: list[tuple[int, float]]
    """Validation loss at that rule, by step."""
    capacities: list[tuple[int, float]]
    """Capacity at that rule, by step; empty for a dense model."""
    loss: float
    scores: list[Score]
    """By step; the last one is of the last checkpoint."""
    flops: float
    """Operations of the network for a picture, forward."""
    training_flops: float
    """Operations of a training sample."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage, of all starts."""
    at_once: int = 1
    """Rows that worked at the same time."""
    commands: list[str] = field(default_factory=list)
    version: str = ""

    @property
    def score(self) -> Score:
        return self.scores[-1]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def record_path(row: Row) -> Path:
    return Path(row.study.output) / "rows" / f"{row.name}.json"


def read_row(row: Row) -> RowResult | None:
    """None if it is not done. Raises: ValueError for a file that is damaged."""
    path = record_path(row)
    if not path.is_file():
        return None
    try:
        result = TypeAdapter(RowResult).validate_json(path.read_bytes())
    except (ValidationError, ValueError, OSError, RecursionError) as error:
        first = "; ".join(str(error).splitlines()[:3])[:200]
        raise ValueError(f"{path} is no row of a study ({first}); remove it and run again") from error
    if (result.variant, result.seed, result.fingerprint) != (row.variant.name, row.seed, row.fingerprint):
        raise ValueError(f"{path} is of another row than its name says; remove it and run again")
    return result


def write_row(row: Row, result: RowResult) -> None:
    """Raises: OSError."""
    path = record_path(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(asdict(result)).encode())


def write_results(rows: Sequence[Row]) -> list[RowResult]:
    """OUTPUT/results.jsonl: a line a row that is done, of the study as it is asked for now.

    Raises: OSError, ValueError for a damaged row.
    """
    results = [result for row in rows if (result := read_row(row)) is not None]
    output = Path(rows[0].study.output)
    output.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{json.dumps(asdict(result))}\n" for result in results)
    replace_file(output / "results.jsonl", lines.encode())
    return results


def deployed_rule(row: Row) -> str:
    """The name of the validation's rule of choosing experts that is used for pictures."""
    selection = row.variant.config.sampling.selection
    if selection not in rules_of(row.variant.config):
        return "train"  # one rule for both
    # A variant that shares another's training has the losses of that one's rules; `static` takes the top K
    # of a batch, as training does.
    return "train" if selection == "static" else selection


def read_losses(row: Row) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Validation losses and capacities at the deployed rule, by step.

    Raises: RunError if the run has none at its last step.
    """
    rule = deployed_rule(row)
    path = RunDirectory(row.run).metrics
    losses, capacities = {}, {}
    for record in read_metrics(path):
        value, step = record.get(f"loss/validation_at/{rule}"), record.get("step")
        if not isinstance(value, int | float) or not isinstance(step, int) or not math.isfinite(value):
            continue
        losses[step] = float(value)
        capacity = record.get(f"moe/validation_capacity/{rule}")
        if isinstance(capacity, int | float):
            capacities[step] = float(capacity)
    if row.config.run.steps not in losses:
        raise RunError(
            f"{path} has no loss/validation_at/{rule} of step {row.config.run.steps}; set "
            "telemetry.validate_every and telemetry.validation_time_samples above 0, or remove "
            f"{row.run} and {row.scores} and run again if its loss was not finite"
        )
    return sorted(losses.items()), sorted(capacities.items())


def read_scores(row: Row) -> list[Score]:
    """Of its checkpoints by step. Raises: RunError without one of the last step, or with two of one step;
    ValueError."""
    scores = []
    for stage in (CURVE, LAST):
        for path in (row.scores / stage).glob(f"*/{RESULT}"):
            result = read_result(path)
            table = result.scores.get(SCORER)
            if table is None:
                raise RunError(f"{path} holds no scores; remove its folder and run again")
            suites = {name: part.value for name, part in table.groups.items()}
            prompts = len(table.prompts) // max(1, len(suites))
            if prompts != (row.study.prompts if stage == LAST else row.study.curve_prompts):
                continue
            found = Score(
                step=result.step,
                prompts=prompts,
                mean=table.total.value,
                suites=suites,
                capacity=result.capacity,
            )
            scores.append(found)
    scores.sort(key=lambda score: score.step)
    steps = [score.step for score in scores]
    if len(set(steps)) < len(steps):
        raise RunError(f"{row.scores} holds scores of an earlier training, too; remove it and run again")
    if not scores or scores[-1].step != row.config.run.steps:
        raise RunError(f"{row.scores} holds no scores of the last step; run again")
    return scores


def remove_scored(row: Row) -> None:
    """Remove the checkpoints of its run before the last."""
    for path in checkpoints_to_score(row, CURVE):
        logger.info("%s was scored and is removed (study.keep_checkpoints=true keeps it)", path)
        shutil.rmtree(path)
