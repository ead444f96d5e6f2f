"""The commands that make a row of a study: training, scores of its checkpoints."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # trees of settings

from diffmoe_scale.checkpoint.manifest import complete_checkpoints, step_of
from diffmoe_scale.config.load import dump_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.files import replace_file
from diffmoe_scale.study.variants import Row

TRAINING, CURVE, LAST = "training", "curve", "last"


@dataclass(frozen=True)
class Command:
    """One process of a row. `stage` is TRAINING, CURVE or LAST; `file` are its settings."""

    stage: str
    module: str
    file: Path

    @property
    def words(self) -> list[str]:
        return [sys.executable, "-m", self.module, "--config", str(self.file)]

    def __str__(self) -> str:
        return shlex.join(["python", *self.words[1:]])


def training_command(row: Row) -> Command:
    """Its file of settings is written when it is there to be run."""
    return Command(TRAINING, "diffmoe_scale.pretrain", settings_file(row, TRAINING))


def score_command(row: Row, stage: str) -> Command:
    return Command(stage, "diffmoe_scale.evaluate", settings_file(row, stage))


def settings_file(row: Row, stage: str) -> Path:
    output = Path(row.study.output)
    name = row.run.name if stage == TRAINING else row.name
    return output / "settings" / f"{name}.{stage}.yaml"


def checkpoints_to_score(row: Row, stage: str) -> list[Path]:
    """Those of its run that a stage scores: the last one, or those before it."""
    steps = row.config.run.steps
    found = complete_checkpoints(RunDirectory(row.run).checkpoints) if row.run.is_dir() else []
    return [path for path in found if (step_of(path) == steps) == (stage == LAST)]


def write_settings(row: Row, stage: str) -> Command | None:
    """The command of a stage with its file of settings; None where there is nothing to score.

    Raises: OSError.
    """
    path = settings_file(row, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    if stage == TRAINING:
        replace_file(path, dump_config(row.config).encode())
        return training_command(row)
    study = row.study
    prompts = study.prompts if stage == LAST else study.curve_prompts
    checkpoints = checkpoints_to_score(row, stage)
    if not prompts or not checkpoints:
        return None
    tree: dict[str, Any] = {
        "evaluation": {
            "checkpoints": [str(path) for path in checkpoints],
            "output": str(row.scores / stage),
            "seed": study.evaluation_seed,
        },
        "sampling": dict(row.variant.sampling),
        "suites": [{"kind": "scenes", "prompts": prompts}],
    }
    replace_file(path, json.dumps(tree, indent=1).encode())
    return score_command(row, stage)


def rerun_command(study_file: Path, row: Row, settings: Sequence[str] = ()) -> str:
    """The command that makes this row alone."""
    words = ["python", "tools/study.py", "--config", str(study_file), "--only", row.variant.name]
    return shlex.join([*words, "--seed", str(row.seed), *settings])
