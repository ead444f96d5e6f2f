"""How experts choose when pictures are drawn: by the rule that the settings name, or by thresholds that were
calibrated for `sampling.capacity` and are kept in RUN/calibrations with what they were made of."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.checkpoint.manifest import MANIFEST
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig, check_capacity
from diffmoe_scale.config.schema import Config
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import plain_selection
from diffmoe_scale.sampling.calibration import Found, calibrate, collect_prompts
from diffmoe_scale.sampling.loading import Pipeline, directory_of
from diffmoe_scale.sampling.logit_counts import thresholds_on
from diffmoe_scale.sampling.prompts import read_prompt_file
from diffmoe_scale.sampling.ranks import Ranks

logger = logging.getLogger(__name__)

SEED = 2**31
"""Of the calibration's pictures: not the noise that pictures are asked for with."""
NOT_MEASURED = (
    "selection",
    "gamma",
    "capacity",
    "calibration",
    "calibration_images",
    "calibration_prompts",
    "batch",
    "batch_invariant",
)
"""Settings of sampling that do not change what experts do, or that the file says in another place."""


def find_selection(pipeline: Pipeline, sampling: SamplingConfig) -> Selection:
    """The selection for pictures by these settings: with `sampling.capacity`, that of the thresholds in
    RUN/calibrations, which are looked for first where there are none, or were made of another checkpoint,
    other prompts or other settings. Collective over the pipeline's ranks.

    Raises: ValueError without a capacity predictor, or where prompts for the calibration cannot be read,
    RunError if no thresholds are found.
    """
    if sampling.capacity == 0:
        return plain_selection(sampling)
    check_capacity(sampling, pipeline.config.moe)
    ranks = Ranks(pipeline.context)
    path = _path(pipeline.directory, pipeline.checkpoint, pipeline.weights, sampling)
    prompts, kept = ranks.of_main(lambda: _look(pipeline, sampling, path))
    if kept is None:
        assert prompts is not None
        if ranks.is_main:
            logger.info(
                "sampling.capacity %g: thresholds are looked for with %d prompts",
                sampling.capacity,
                len(prompts),
            )
        plain = SamplingConfig(**asdict(sampling) | {"capacity": 0.0})
        found = calibrate(
            pipeline, prompts, plain, capacity=sampling.capacity, seed=SEED, kind=sampling.calibration
        )
        kept = _tree(pipeline, sampling, prompts, found)
        if ranks.is_main:
            _keep(path, kept)
    blocks = {int(block): values for block, values in kept["thresholds"].items()}
    return Selection(
        "interval", gamma=kept["gamma"], gamma_by_block=thresholds_on(blocks, pipeline.networks.device)
    )


def check_calibration(config: Config, sampling: SamplingConfig, *, checkpoint: Path, weights: str) -> None:
    """Before hours of drawing: whether `find_selection` will have thresholds, or prompts to look for them.

    `config` is the run's. Raises: ValueError as `find_selection`.
    """
    if sampling.capacity == 0:
        return
    check_capacity(sampling, config.moe)
    try:
        _prompts(config, sampling)
    except (ValueError, OSError) as error:
        path = _path(directory_of(checkpoint), checkpoint, weights, sampling)
        kept, _ = _read_fitting(path, _made_of(checkpoint, sampling, None))
        if kept is None:
            raise _no_prompts(error) from error


def describe_thresholds(selection: Selection) -> str:
    """Twelve hexadecimal digits that differ between thresholds; "" for a rule without a calibration."""
    if not selection.gamma_by_block:
        return f"gamma {selection.gamma:g}" if selection.rule == "interval" else ""
    tree = {str(block): values.tolist() for block, values in selection.gamma_by_block.items()}
    return blake2b(json.dumps(tree).encode(), digest_size=6).hexdigest()


def _path(directory: RunDirectory, checkpoint: Path, weights: str, sampling: SamplingConfig) -> Path:
    """Each checkpoint, capacity, way of sampling and file of prompts has its own: a sweep keeps all."""
    way = fingerprint_of(measured_settings(sampling))[:8]
    kind = f"{sampling.calibration}-{sampling.capacity:g}-{way}"
    if sampling.calibration_prompts:
        kind += f"-{fingerprint_of(sampling.calibration_prompts)[:8]}"
    return directory.calibrations / f"{checkpoint.stem}-{weights}-{kind}.json"


def _look(
    pipeline: Pipeline, sampling: SamplingConfig, path: Path
) -> tuple[list[str | int] | None, dict[str, Any] | None]:
    """The prompts for a calibration, and the one that is kept and still holds (None: there is none)."""
    prompts, unread = None, None
    try:
        prompts = _prompts(pipeline.config, sampling)
    except (ValueError, OSError) as error:
        unread = error
    kept, problem = _read_fitting(path, _made_of(pipeline.checkpoint, sampling, prompts))
    if problem:
        logger.info("%s %s; the calibration is made anew", path, problem)
    if unread is not None:
        if kept is None:
            raise _no_prompts(unread) from unread
        logger.info("the prompts of %s cannot be read to compare them (%s)", path, unread)
    return prompts, kept


def _no_prompts(error: Exception) -> ValueError:
    return ValueError(
        f"sampling.capacity needs prompts to calibrate with, and they cannot be read ({error}); set "
        "sampling.calibration_prompts to a file of prompts"
    )


def _read_fitting(path: Path, wanted: Mapping[str, str | None]) -> tuple[dict[str, Any] | None, str]:
    """What is kept at `path` if it was made of what is wanted, and what is wrong with it else."""
    kept, problem = _read(path)
    if kept is not None:
        differing = [
            name for name, value in wanted.items() if value is not None and kept["made_of"].get(name) != value
        ]
        problem = f"was made of another {', '.join(differing)}" if differing else ""
    return (None if problem else kept), problem


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What is kept at `path`, and what is wrong with it; None without a file."""
    if not path.is_file():
        return None, ""
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        is_right = isinstance(tree["made_of"], dict) and isinstance(tree["gamma"], float)
        blocks = {int(block): values for block, values in tree["thresholds"].items()}
        numbers = [float(value) for values in blocks.values() for value in values]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"cannot be read ({error!r:.120})"
    if not is_right or not all(0 <= number <= 1 for number in [*numbers, tree["gamma"]]):
        return None, "holds no thresholds"
    return tree, ""


def _prompts(config: Config, sampling: SamplingConfig) -> list[str | int]:
    """Raises: ValueError, OSError."""
    count = sampling.calibration_images
    if not sampling.calibration_prompts or config.model.conditioning == "class":
        return list(collect_prompts(config, count))
    rows = read_prompt_file(Path(sampling.calibration_prompts))
    return [rows[place % len(rows)].prompt for place in range(count)]


def _made_of(
    checkpoint: Path, sampling: SamplingConfig, prompts: Sequence[str | int] | None
) -> dict[str, str | None]:
    """Fingerprints of what decides the thresholds; None for what is not known."""
    return {
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "prompts": None if prompts is None else fingerprint_of(prompts),
        "settings": fingerprint_of(measured_settings(sampling)),
    }


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """Of a checkpoint's manifest, which holds the check sums of its files; of the names, sizes and times of
    an export's files."""
    if (checkpoint / MANIFEST).is_file():
        return blake2b((checkpoint / MANIFEST).read_bytes(), digest_size=8).hexdigest()
    files = sorted(checkpoint.glob("*.safetensors*")) if checkpoint.is_dir() else [checkpoint]
    return fingerprint_of([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def measured_settings(sampling: SamplingConfig) -> dict[str, Any]:
    """Those that change what experts do, but for how their thresholds are found."""
    return {name: value for name, value in asdict(sampling).items() if name not in NOT_MEASURED}


def fingerprint_of(tree: object) -> str:
    """Sixteen hexadecimal digits of a JSON tree."""
    return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


def _tree(
    pipeline: Pipeline, sampling: SamplingConfig, prompts: Sequence[str | int], found: Found
) -> dict[str, Any]:
    thresholds: Mapping[int, Any] = found.selection.gamma_by_block
    return {
        "checkpoint": str(pipeline.checkpoint),
        "step": pipeline.step,
        "weights": pipeline.weights,
        "calibration": sampling.calibration,
        "capacity_asked_for": sampling.capacity,
        "capacity": found.capacity,
        "gamma": found.selection.gamma,
        "thresholds": {str(block): values.tolist() for block, values in thresholds.items()},
        "made_of": _made_of(pipeline.checkpoint, sampling, prompts),
        "images": len(prompts),
        "first_prompts": list(prompts[:8]),
        "seed": SEED,
        "sampling": measured_settings(sampling),
        "trials": [asdict(trial) for trial in found.trials],
    }


def _keep(path: Path, tree: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(tree, indent=1).encode())
    except OSError as error:
        logger.warning("the calibration is used but cannot be kept: %s", error)
    else:
        logger.info("kept in %s", path)
