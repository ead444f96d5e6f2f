"""Metrics such as FID of a job's pictures, kept with everything that they depend on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any  # JSON values

import numpy as np
import torch
from PIL import Image

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.harness.drawing import read_drawn, read_picture
from diffmoe_scale.evaluation.harness.job import Job
from diffmoe_scale.evaluation.metrics.backbones import load_backbones
from diffmoe_scale.evaluation.metrics.scorer import Metrics, check_metrics, check_size, load_metrics
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.sampling.picture_files import FORMATS

METRICS = "metrics.json"
NOT_SEEN = ("cache", "batch")
"""Settings that decide no value."""
FILES = ("reference", "inception", "timm_weights", "clip_weights")


def pixels_of(picture: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of a file that was drawn."""
    with Image.open(BytesIO(picture), formats=[kind.upper() for kind in FORMATS]) as image:
        return np.asarray(image.convert("RGB"))


class MetricsKeeper:
    """The metrics of the settings, loaded when the first job needs them. For one process."""

    def __init__(self, config: MetricsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._loaded: Metrics | None = None
        self._is_checked = False

    def check(self, jobs: Sequence[Job]) -> None:
        """Before hours of drawing: settings, weight files and the reference's size. The networks are not
        kept, so that the memory is free for drawing.

        Raises: ValueError for what does not fit, OSError.
        """
        if not self.config.names or not jobs:
            return
        measures, reference = check_metrics(self.config)
        for job in jobs:
            if job.suite.count < 2:
                raise ValueError(
                    f"suite {job.suite.name!r} has a single picture, and metrics are of 2 or more; raise "
                    "suites.N.prompts or suites.N.pictures, or leave out metrics.names"
                )
            side = job.target.config.model.image_size
            check_size((job.sampling.height or side, job.sampling.width or side), reference, self.config)
        if not self._is_checked:
            load_backbones(self.config, measures, torch.device("cpu"))
        self._is_checked = True

    def measure(self, job: Job, folder: Path) -> Sequence[dict[str, Any]]:
        """The metrics of all pictures of a job; those that were kept if nothing changed.

        Raises: ValueError for settings, weights or references that do not fit, RunError, OSError.
        """
        if not self.config.names:
            return []
        key = self._key(job, folder)
        path = folder / METRICS
        try:
            kept = parse_json(path.read_bytes())
            if kept["key"] == key:
                values: list[dict[str, Any]] = kept["values"]
                return values
        except (OSError, ValueError, TypeError, LookupError):
            pass
        found = self._compute(job, folder)
        replace_file(path, json.dumps({"key": key, "values": found}).encode())
        return found

    def _key(self, job: Job, folder: Path) -> str:
        """Of pictures, settings, and the files that the settings name (by size and time)."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in NOT_SEEN}
        files = {name: list(_states(Path(settings[name]))) for name in FILES if settings[name]}
        drawn = read_drawn(folder)
        digests = [drawn[place].digest for place in range(job.suite.count)]
        content = [settings, files, digests]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _compute(self, job: Job, folder: Path) -> list[dict[str, Any]]:
        if self._loaded is None:
            self._loaded = load_metrics(self.config, self.device)
        scorer, drawn = self._loaded.start(), read_drawn(folder)
        for first in range(0, job.suite.count, self.config.batch):
            places = range(first, min(first + self.config.batch, job.suite.count))
            pixels = [pixels_of(read_picture(job, folder, place, drawn[place])) for place in places]
            scorer.update(
                np.stack(pixels), list(places), [job.suite.prompt_of(place).text for place in places]
            )
        return [value.as_tree() for value in scorer.values()]


def _states(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time of a file, or of all files below a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            stat = file.stat()
            yield file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns
