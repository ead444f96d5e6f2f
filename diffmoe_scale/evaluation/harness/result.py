"""What is known of a job: typed, as JSON in JOB/result.json, and of all jobs in results.jsonl."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # JSON trees

from pydantic import TypeAdapter, ValidationError

from diffmoe_scale.evaluation.harness.drawing import DrawnPicture
from diffmoe_scale.evaluation.harness.job import Job
from diffmoe_scale.evaluation.harness.statistics import Estimate, estimate, estimate_groups
from diffmoe_scale.evaluation.suites.suite import PictureScore, Suite
from diffmoe_scale.files import replace_file

RESULT = "result.json"
RESULTS = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores by one scorer: of the suite, of its groups of prompts, and of parts of pictures (questions of a
    kind; their intervals take them as independent). `by_prompt` are the means over the pictures of a
    prompt."""

    total: Estimate
    groups: dict[str, Estimate]
    parts: dict[str, Estimate]
    prompts: list[int]
    """The numbers of the prompts that are scored."""
    by_prompt: list[float]
    by_picture: list[float]


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a suite found of some weights, and everything without which it must not be compared."""

    fingerprint: str
    """Of what was drawn."""
    folder: str
    """Of its pictures and records, below the evaluation's output."""
    run: str
    checkpoint: str
    step: int
    weights: str
    suite: str
    kind: str
    suite_fingerprint: str
    means_of_groups: bool
    sampling: dict[str, Any]
    varied: dict[str, Any]
    """The settings of sampling that the evaluation named."""
    seed: int
    prompts: list[str]
    groups: list[str]
    """The group of each prompt."""
    files: list[str]
    """The pictures, below `folder`; those of a prompt follow each other."""
    capacity: float
    """Average inference capacity (DiffMoE eq. 15), measured over these pictures."""
    calls: float
    """Calls of the network a picture."""
    flops: float
    """Operations of the network a picture."""
    seconds: float
    """Seconds a picture."""
    scores: dict[str, ScoreTable] = field(default_factory=dict)
    """By who scored: `exact rule`, `benchmark`, or `judge FINGERPRINT`."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """FID and others; evaluation/metrics/result.py."""
    waiting: str = ""
    """What is still to be done for a score."""


def make_table(suite: Suite, scores: Mapping[int, PictureScore]) -> ScoreTable:
    """From the scores by place of all pictures whose prompts are scored."""
    prompts = [prompt for prompt in range(len(suite.prompts)) if suite.is_scored(prompt)]
    places = [prompt * suite.copies + copy for prompt in prompts for copy in range(suite.copies)]
    by_picture = [scores[place].value for place in places]
    by_prompt = [
        statistics.fmean(by_picture[first : first + suite.copies])
        for first in range(0, len(places), suite.copies)
    ]
    groups = [suite.prompts[prompt].group for prompt in prompts]
    values: list[float] = []
    names: list[str] = []
    for place in places:
        for name, parts in scores[place].parts.items():
            values += parts
            names += [name] * len(parts)
    return ScoreTable(
        total=estimate(by_prompt, groups, means_of_groups=suite.means_of_groups),
        groups=estimate_groups(by_prompt, groups) if len(set(groups)) > 1 else {},
        parts=estimate_groups(values, names),
        prompts=prompts,
        by_prompt=by_prompt,
        by_picture=by_picture,
    )


def make_result(
    job: Job,
    drawn: Mapping[int, DrawnPicture],
    scores: Mapping[str, ScoreTable],
    metrics: Sequence[dict[str, Any]],
    waiting: str,
) -> JobResult:
    target, suite = job.target, job.suite
    pictures = [drawn[place] for place in range(suite.count)]
    if len({picture.thresholds for picture in pictures}) > 1:
        raise ValueError(
            f"the pictures of {job.name} were drawn with thresholds of different calibrations; remove this "
            "folder and run again"
        )
    return JobResult(
        fingerprint=job.fingerprint,
        folder=job.name,
        run=target.run,
        checkpoint=str(target.path),
        step=target.step,
        weights=target.weights,
        suite=suite.name,
        kind=suite.kind,
        suite_fingerprint=suite.fingerprint,
        means_of_groups=suite.means_of_groups,
        sampling=asdict(job.sampling),
        varied=dict(job.varied),
        seed=job.seed,
        prompts=[prompt.text for prompt in suite.prompts],
        groups=[prompt.group for prompt in suite.prompts],
        files=[suite.file_of(place) for place in range(suite.count)],
        capacity=statistics.fmean(picture.capacity for picture in pictures),
        calls=statistics.fmean(picture.calls for picture in pictures),
        flops=statistics.fmean(picture.flops for picture in pictures),
        seconds=statistics.fmean(picture.seconds for picture in pictures),
        scores=dict(scores),
        metrics=list(metrics),
        waiting=waiting,
    )


def write_result(folder: Path, result: JobResult) -> None:
    """Raises: OSError."""
    replace_file(folder / RESULT, json.dumps(asdict(result)).encode())


def read_result(path: Path) -> JobResult:
    """Raises: ValueError if the file is no result."""
    try:
        result = TypeAdapter(JobResult).validate_json(path.read_bytes())
    except (ValidationError, OSError, ValueError, RecursionError) as error:
        first = str(error).splitlines()
        raise ValueError(
            f"{path} is no result of an evaluation ({'; '.join(first[:3])[:200]}); remove it and run again"
        ) from error
    if result.folder != path.parent.name:
        raise ValueError(
            f"{path} is the result of {result.folder}, of other weights or settings than its folder; remove "
            "it and run again"
        )
    return result


def write_results(output: Path) -> list[JobResult]:
    """Write results.jsonl, a line for each result below the output, and return them.

    Raises: OSError, ValueError for a file that is no result.
    """
    results = [read_result(path) for path in sorted(output.glob(f"*/{RESULT}"))]
    results.sort(key=_order)
    lines = [json.dumps(asdict(result)) for result in results]
    replace_file(output / RESULTS, "".join(f"{line}\n" for line in lines).encode())
    return results


def _order(result: JobResult) -> tuple[Any, ...]:
    """By suite, run, step, weights and the values of settings, numbers by size."""
    varied = [
        (name, str(type(value)), value if isinstance(value, int | float) else 0, str(value))
        for name, value in result.varied.items()
    ]
    return result.suite, result.run, result.step, result.weights, varied, result.folder
