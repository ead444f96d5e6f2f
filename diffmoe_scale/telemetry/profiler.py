"""A trace of a few steps, whenever a file asks for it."""

import logging
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

NO_LINES = "6"
"""Of KINETO_LOG_LEVEL: above its errors, which begin with the missing driver where there is no GPU."""


class ProfileOnDemand:
    """While the file `request` exists, the next `steps` steps of this rank are traced into
    `folder`/step_N.json.gz, which opens in Perfetto (ui.perfetto.dev) and chrome://tracing. The file is
    removed when the trace begins. A failure is said and ends nothing. For the main rank.
    """

    def __init__(self, request: Path, folder: Path, *, steps: int, device: torch.device) -> None:
        self._request, self._folder, self._steps = request, folder, steps
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        else:
            # libkineto reads it at its first trace.
            os.environ.setdefault("KINETO_LOG_LEVEL", NO_LINES)
        self._profile: profile | None = None
        self._last_step = 0

    def begin_step(self, step: int) -> None:
        if self._profile is not None or not self._request.exists():
            return
        try:
            self._request.unlink()
            self._folder.mkdir(parents=True, exist_ok=True)
            tracing = profile(activities=self._activities, acc_events=True)
            tracing.start()
        except (OSError, RuntimeError) as error:
            logger.warning("no trace: %s", error)
            return
        logger.info("tracing %s from step %d on", counted(self._steps, "step"), step)
        self._profile, self._last_step = tracing, step + self._steps - 1

    def end_step(self, step: int) -> None:
        if self._profile is None or step < self._last_step:
            return
        path = self._folder / f"step_{step:08d}.json.gz"
        ended, self._profile = self._profile, None
        try:
            ended.stop()
            ended.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            logger.warning("no trace at %s: %s", path, error)
            return
        logger.info("the trace is %s; open it in ui.perfetto.dev", path)

    def close(self) -> None:
        """A trace that is not complete is lost."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            logger.warning("the run ended before step %d: no trace", self._last_step)
