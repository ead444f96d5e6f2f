"""The weights that are evaluated: checkpoints and exports by path or pattern, and what identifies them."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from diffmoe_scale.checkpoint.convertible import refuse_convertible
from diffmoe_scale.checkpoint.manifest import MANIFEST, complete_checkpoints, read_manifest, step_of
from diffmoe_scale.checkpoint.stored import is_export, open_export
from diffmoe_scale.config.load import load_run_config
from diffmoe_scale.config.run_directory import RunDirectory, run_of_checkpoint
from diffmoe_scale.config.schema import Config

GIVE = "give run directories, their checkpoints/step_N folders, .safetensors exports, or patterns of these"


@dataclass(frozen=True)
class Target:
    """One family of weights of a checkpoint."""

    path: Path
    run: str
    """What curves are drawn for: the path of the run, or of the export."""
    step: int
    weights: str
    identity: str
    """Of the weights, wherever they lie: the hash of the checkpoint's manifest, which holds the check sums of
    all files, or of the export's bytes."""
    config: Config


def find_targets(patterns: Sequence[str], weights: Sequence[str], *, may_be_empty: bool) -> list[Target]:
    """All weights that the patterns name now, each run's by step.

    Raises: ValueError for a path that is no run, checkpoint or export, or, unless `may_be_empty`, names none.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        found = _checkpoints(pattern)
        if not found and not may_be_empty:
            raise ValueError(f"evaluation.checkpoints: {pattern} holds no complete checkpoint; train first")
        paths |= dict.fromkeys(found)
    return [target for path in paths for target in _targets(path, weights)]


def is_there(target: Target) -> bool:
    """Whether a checkpoint still holds these weights: its training may have removed it, or another have
    written the same step."""
    return any(found.identity == target.identity for found in _targets(target.path, [target.weights]))


def unfinished_runs(patterns: Sequence[str]) -> list[Path]:
    """The runs that the patterns name whose last checkpoint is still to come."""
    runs: dict[Path, None] = {}
    for pattern in patterns:
        for path in _paths(pattern):
            run = (run_of_checkpoint(path) or RunDirectory(path)).path
            if (run / "config.yaml").is_file() and not is_export(path):
                runs[run] = None
    return [run for run in runs if not _is_finished(RunDirectory(run))]


def _is_finished(run: RunDirectory) -> bool:
    steps = [step_of(checkpoint) for checkpoint in complete_checkpoints(run.checkpoints)]
    return max(steps, default=0) >= load_run_config(run.config).run.steps


def _paths(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [Path(pattern)]
    paths = sorted(Path(name) for name in glob.glob(pattern))
    if not paths:
        raise ValueError(f"evaluation.checkpoints: {pattern} matches nothing; {GIVE}")
    return paths


def _checkpoints(pattern: str) -> list[Path]:
    found = []
    for path in _paths(pattern):
        if not glob.has_magic(pattern):
            refuse_convertible(path)
        if is_export(path) or (path / MANIFEST).is_file():
            found.append(path)
        elif (path / "config.yaml").is_file():
            found += complete_checkpoints(RunDirectory(path).checkpoints)
        elif not glob.has_magic(pattern):
            what = "is neither a run nor a complete checkpoint" if path.exists() else "does not exist"
            raise ValueError(f"evaluation.checkpoints: {path} {what}; {GIVE}")
    return found


def _targets(path: Path, weights: Sequence[str]) -> list[Target]:
    """One for each family; none if the checkpoint was removed meanwhile."""
    if not path.exists():
        return []
    if is_export(path):
        stored = open_export(path, is_foreign=True)
        digest = sha256()
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            with file.open("rb") as content:
                digest.update(file_digest(content, "sha256").digest())
        run, step, config = str(path), stored.step, stored.config
    else:
        try:
            manifest = (path / MANIFEST).read_bytes()
            step = read_manifest(path).step
        except (OSError, ValueError):
            if not (path / MANIFEST).is_file():
                return []
            raise
        directory = RunDirectory(path.absolute().parent.parent)
        digest = sha256(manifest)
        run, config = str(directory.path), load_run_config(directory.config)
    return [
        Target(path, run, step, family, f"{digest.hexdigest()[:24]}-{family}", config) for family in weights
    ]
