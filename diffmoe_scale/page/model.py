"""The loaded model, and what the page must know of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.checkpoint.stored import is_export
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.run_directory import run_of_checkpoint
from diffmoe_scale.config.sampling import SAMPLERS
from diffmoe_scale.config.section import expand_home
from diffmoe_scale.page.form import CALIBRATIONS, EXPERTS
from diffmoe_scale.sampling.loading import Pipeline, load_pipeline


class Model:
    """One model at a time. `settings` override those of each run; with `is_bound` only checkpoints of the
    run directory that the command named are loaded."""

    def __init__(self, path: Path, *, weights: str, settings: Sequence[str], is_bound: bool) -> None:
        self.path, self.settings, self.is_bound = path, tuple(settings), is_bound
        self._loaded = load_pipeline(path, weights=weights, settings=settings)
        self._named = str(path), weights

    @property
    def first(self) -> Pipeline:
        return self._loaded

    def get(self, checkpoint: str, weights: str) -> tuple[Pipeline, bool]:
        """The model of a checkpoint, and whether it was loaded now: where another is asked for, where a run
        directory has a newer checkpoint, and where the loaded one was removed.

        Raises: ValueError as `load_pipeline`, or for a path outside of the run.
        """
        path = Path(expand_home(checkpoint, "checkpoint"))
        if self.is_bound and not _lies_in(path, self.path):
            raise ValueError(
                f"{checkpoint} is not in {self.path}: a page that others reach draws of its own run alone"
            )
        if (checkpoint, weights) == self._named and self._is_current(path):
            return self._loaded, False
        self._loaded = load_pipeline(path, weights=weights, settings=self.settings)
        self._named = checkpoint, weights
        return self._loaded, True

    def _is_current(self, path: Path) -> bool:
        loaded = self._loaded.checkpoint
        if not loaded.exists():
            return False
        complete = complete_checkpoints(path / "checkpoints") if (path / "checkpoints").is_dir() else []
        return not complete or complete[-1] == loaded


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(_run_of(folder.resolve()))


def _run_of(path: Path) -> Path:
    """The run of a checkpoint; of another path, itself."""
    run = None if is_export(path) else run_of_checkpoint(path)
    return path if run is None else run.path


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """For the page: what this model can be asked for, and the settings of its run."""
    config, sampling = pipeline.config, pipeline.config.sampling
    layers = pipeline.networks.denoiser.moe_layers()
    choices = _choices(config.moe) if layers else []
    experts = sampling.calibration if sampling.capacity else sampling.selection
    return {
        "kind": "model",
        "checkpoint": str(pipeline.checkpoint),
        "step": pipeline.step,
        "weights": pipeline.weights,
        "num_classes": config.model.num_classes if config.model.conditioning == "class" else 0,
        "num_experts": config.moe.num_experts if layers else 0,
        "blocks": [layer.layer_index for layer in layers],
        "samplers": list(SAMPLERS[config.diffusion.kind]),
        "choices": choices,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "experts": experts if experts in choices else EXPERTS[0],
        "capacity": sampling.capacity or min(1.0, config.moe.capacity),
        "gamma": sampling.gamma,
    }


def _choices(moe: MoEConfig) -> list[str]:
    """Those of EXPERTS that a router has: without thresholds there is no choice."""
    rules = (*moe.rules, *CALIBRATIONS)
    return [name for name in EXPERTS if name in rules] if moe.has_thresholds else []


def checkpoints_of(path: Path) -> list[str]:
    """The run of the path and its complete checkpoints, the newest first, to choose from."""
    run = _run_of(path)
    complete = complete_checkpoints(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return [str(run), *map(str, reversed(complete))]
