"""Experiment trackers: TensorBoard, Weights & Biases (imported here alone), Prometheus."""

import json
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol  # Any: the resolved config as a tree of plain values

import numpy as np
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.telemetry.code_version import code_version
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.telemetry.prometheus import PrometheusTracker

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place that shows a run while it goes on."""

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Show scalars; a vector by its extremes, NaN left out, as `<name>/min` and `<name>/max`."""

    def images(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file."""

    def close(self) -> None:
        """Write what is pending; nothing may be logged afterwards."""


def build_trackers(
    config: TelemetryConfig, run_directory: Path, resolved_config: dict[str, Any], *, start_step: int = 0
) -> list[Tracker]:
    """The trackers that the config asks for. For the main rank only. `start_step` is the step that a resumed
    run continues from.

    A failure while the run goes on is logged once and does not stop it.

    Raises: RuntimeError if a tracker cannot be started.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(
            _start(
                "TensorBoard",
                "set telemetry.tensorboard=false",
                lambda: TensorBoardTracker(run_directory, start_step=start_step),
            )
        )
    if config.prometheus_port:
        trackers.append(
            _start(
                "Prometheus",
                "choose another telemetry.prometheus_port or prometheus_address",
                lambda: PrometheusTracker(
                    run_directory.resolve().name,
                    address=config.prometheus_address,
                    port=config.prometheus_port,
                ),
            )
        )
    if config.wandb != "disabled":
        remedy = (
            "set telemetry.wandb=disabled"
            if config.wandb == "offline"
            else "run `wandb login`, or set telemetry.wandb=offline"
        )
        trackers.append(
            _start(
                "Weights & Biases",
                remedy,
                lambda: WandbTracker(config, run_directory, resolved_config, start_step=start_step),
            )
        )
    return trackers


class TensorBoardTracker:
    """Events in RUN/tensorboard."""

    def __init__(self, run_directory: Path, *, start_step: int) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # imported here: takes a second, and only when asked for
        )

        # Hides what an earlier start had logged after the checkpoint that this one continues from.
        self._writer = SummaryWriter(str(run_directory / "tensorboard"), purge_step=start_step + 1)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        for name, value in _scalars(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, name: str, path: Path) -> None:
        with Image.open(path, formats=["PNG"]) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """One Weights & Biases run for one run directory: its id is kept in RUN/wandb_id.txt and taken up again
    on resume, a run that begins at step 0 has a new one.

    Weights & Biases cannot take back what it was given. So each step is sent once: of steps that are trained
    again, the first figures stay. RUN/wandb_steps.json holds the last step that was sent, by kind.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        run_directory: Path,
        resolved_config: dict[str, Any],
        *,
        start_step: int,
    ) -> None:
        import wandb  # imported here: takes seconds, and only when asked for

        run_directory.mkdir(parents=True, exist_ok=True)
        id_file = run_directory / "wandb_id.txt"
        self._steps_file = run_directory / "wandb_steps.json"
        if start_step == 0 or not _read_text(id_file):
            replace_file(id_file, f"{secrets.token_hex(4)}\n".encode())
            self._steps_file.unlink(missing_ok=True)
        self._steps = _read_steps(self._steps_file)
        self._wandb = wandb
        self._run = wandb.init(
            project=config.wandb_project,
            name=run_directory.resolve().name,
            id=_read_text(id_file),
            resume="allow",
            mode="online" if config.wandb == "online" else "offline",
            dir=str(run_directory),
            config=resolved_config | {"code": code_version()},
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own step counts calls; ours is an ordinary metric.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        if self._is_new("metrics", step):
            self._run.log({"step": step, **_scalars(metrics)})

    def images(self, step: int, name: str, path: Path) -> None:
        if self._is_new(name, step):
            self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()

    def _is_new(self, kind: str, step: int) -> bool:
        """Nothing of this kind was sent of this step or a later one. Notes that it is sent now."""
        if step <= self._steps.get(kind, 0):
            return False
        self._steps[kind] = step
        replace_file(self._steps_file, json.dumps(self._steps).encode())
        return True


class GuardedTracker:
    """A tracker whose failures are logged once and end here."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._has_failed = False

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        self._attempt(lambda: self._tracker.log(step, metrics))

    def images(self, step: int, name: str, path: Path) -> None:
        self._attempt(lambda: self._tracker.images(step, name, path))

    def close(self) -> None:
        self._attempt(self._tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (
            Exception
        ) as error:  # whatever a tracker's network, disk or process does must not end a training run
            if not self._has_failed:
                logger.warning(
                    "%s failed (%s: %s); training goes on, further failures are not logged",
                    self._name,
                    type(error).__name__,
                    error,
                )
            self._has_failed = True


def _start(name: str, remedy: str, make: Callable[[], Tracker]) -> Tracker:
    try:
        return GuardedTracker(name, make())
    except Exception as error:  # trackers raise their own classes for a missing account, network or disk
        raise RunError(f"{name} did not start: {type(error).__name__}: {error}; {remedy}") from error


def _read_text(path: Path) -> str:
    """Of a small file; "" without it or if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ValueError):
        return ""
    return text if text.isascii() and text.isalnum() else ""


def _read_steps(path: Path) -> dict[str, int]:
    """{} without the file; raises ValueError if it is damaged, and nothing tells what was sent."""
    if not path.exists():
        return {}
    try:
        steps = parse_json(path.read_bytes())
        if not isinstance(steps, dict) or any(type(step) is not int for step in steps.values()):
            raise ValueError("expected steps by kind")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it and wandb_id.txt beside it to begin a new run there"
        ) from error
    return steps


def _scalars(metrics: Mapping[str, MetricValue]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(value, list):
            scalars[name] = value
        elif known := [number for number in value if not math.isnan(number)]:
            scalars |= {f"{name}/min": min(known), f"{name}/max": max(known)}
    return scalars
