"""A run with three checkpoints, and evaluations of it in processes of their own."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any  # settings of any type

import pytest
import yaml

from diffmoe_scale.config.evaluation import load_harness_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.harness import drawing
from diffmoe_scale.evaluation.harness.drawing import Part
from diffmoe_scale.evaluation.harness.result import JobResult
from diffmoe_scale.evaluation.harness.run import run_evaluation
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.batch import Generated
from diffmoe_scale.train import run as training
from tests.train.runs import text_settings, tiny_config

SETTINGS = [
    "run.steps=6",
    "checkpoint.every=2",
    "checkpoint.keep_last=3",
    "optimizer.warmup_steps=1",
    "sampling.steps=2",
    "sampling.batch=4",
    "model.image_size=32",
]
STEPS = (2, 4, 6)
WHOLE = Part()


def train(context: ParallelContext, folder: str) -> None:
    config = tiny_config([*text_settings(Path(folder)), *SETTINGS])
    training.train(config, context, RunDirectory(Path(config.run.directory)))


def write_config(folder: Path, run: Path, **sections: Any) -> Path:
    """A file whose output is FOLDER/out; `sections` replace the usual ones, but for entries of evaluation."""
    tree = {
        "suites": [{"kind": "scenes", "prompts": 1}],
        "sampling": {"gamma": [0.4, 0.6], "selection": "interval"},
        **sections,
    }
    tree["evaluation"] = {
        "checkpoints": [str(run)],
        "output": str(folder / "out"),
        **sections.get("evaluation", {}),
    }
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class Stop(BaseException):
    """What a kill is to a test: nothing catches it."""


def evaluate(
    config: Path, *, part: Part = WHOLE, watch: bool = False, batches: int | None = None
) -> tuple[list[tuple[str, str]], Sequence[JobResult], list[str]]:
    """The pictures that were drawn, as (job, prompt), the last results, and what was said of lost ones.
    After `batches` batches the evaluation is killed between drawing and writing. For a process of its own."""
    drawn: list[tuple[str, str]] = []
    last: list[JobResult] = []
    generate_batches = drawing.generate_batches
    finished = 0

    def counting(*args: Any, title: str, **options: Any) -> Iterator[Generated]:
        nonlocal finished
        for batch in generate_batches(*args, title=title, **options):
            if finished == batches:
                raise Stop
            finished += 1
            drawn.extend((title, str(request.prompt)) for request in batch.requests)
            yield batch

    def report(results: Sequence[JobResult]) -> None:
        last[:] = results

    gone: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "generate_batches", counting)
        with contextlib.suppress(Stop):
            gone = run_evaluation(load_harness_config(config), part=part, watch=watch, report=report)
    return drawn, last, gone
