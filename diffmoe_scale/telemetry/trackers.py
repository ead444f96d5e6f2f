"""Experiment trackers: TensorBoard and Weights & Biases. The only door of both packages."""

import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol  # Any: the resolved config as a tree of plain values

import numpy as np
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.telemetry.metrics import MetricValue

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place that shows a run while it goes on."""

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Show scalars; a vector by its extremes as `<name>/min` and `<name>/max`."""

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
    if config.wandb != "disabled":
        remedy = (
            "set telemetry.wandb=disabled"
            if config.wandb == "offline"
            else "run `wandb login`, or set telemetry.wandb=offline"
        )
        trackers.append(
            _start("Weights & Biases", remedy, lambda: WandbTracker(config, run_directory, resolved_config))
        )
    return trackers


class TensorBoardTracker:
    """Events in RUN/tensorboard."""

    def __init__(self, run_directory: Path, *, start_step: int) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # imported here: takes a second, and only when asked for
        )

        # Hides what a stopped run had logged after the checkpoint it is continued from.
        purge_step = start_step + 1 if start_step else None
        self._writer = SummaryWriter(str(run_directory / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        for name, value in _scalars(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """One Weights & Biases run for one run directory: its id is kept in RUN/wandb_id.txt and taken up again
    on resume."""

    def __init__(self, config: TelemetryConfig, run_directory: Path, resolved_config: dict[str, Any]) -> None:
        import wandb  # imported here: takes seconds, and only when asked for

        run_directory.mkdir(parents=True, exist_ok=True)
        id_file = run_directory / "wandb_id.txt"
        if not id_file.is_file():
            id_file.write_text(secrets.token_hex(4) + "\n")
        self._wandb = wandb
        self._run = wandb.init(
            project=config.wandb_project,
            name=run_directory.resolve().name,
            id=id_file.read_text().strip(),
            resume="allow",
            mode="online" if config.wandb == "online" else "offline",
            dir=str(run_directory),
            config=resolved_config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own step may only grow, so it would refuse the steps that a resumed run repeats; ours is an
        # ordinary metric.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        self._run.log({"step": step, **_scalars(metrics)})

    def images(self, step: int, name: str, path: Path) -> None:
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()


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


def _scalars(metrics: Mapping[str, MetricValue]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(value, list):
            scalars[name] = value
        elif value:
            scalars |= {f"{name}/min": min(value), f"{name}/max": max(value)}
    return scalars
