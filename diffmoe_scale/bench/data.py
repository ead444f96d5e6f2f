"""Samples a second and CPU time a sample of reading, this reader against others, one core each."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from diffmoe_scale.bench.data_contenders import OURS, feature_contenders, picture_contenders
from diffmoe_scale.bench.data_files import make_features, make_pictures
from diffmoe_scale.bench.options import DataOptions
from diffmoe_scale.bench.timing import ratios

PICTURE_SIZE = 256
"""Width and height of the pictures that are made."""


@dataclass(frozen=True)
class Figure:
    """Medians over the rounds of one contender."""

    samples_per_s: float
    samples_per_cpu_s: float
    ratio: dict[str, float]
    """Quartiles over the rounds of this reader's CPU speed over the contender's, pair by pair."""


def bench_data(options: DataOptions) -> dict[str, object]:
    """Figures of the contenders for `pictures` and `features`, printed as they are found.

    Raises: ValueError if the shards cannot be read.
    """
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    print(f"{'':<12}{'':<14}{'samples/s':>12}{'per CPU s':>12}{'CPU us/sample':>15}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for title, contenders in _contenders(options, Path(folder)).items():
            batches = -(-options.samples // options.batch)
            figures = race(contenders, batches=batches, batch=options.batch, rounds=options.rounds)
            found[title] = {name: vars(figure) for name, figure in figures.items()}
            for name, figure in figures.items():
                speed = figure.samples_per_cpu_s
                print(
                    f"{title:<12}{name:<14}{figure.samples_per_s:>12,.0f}{speed:>12,.0f}"
                    f"{1e6 / speed:>15,.1f}{figure.ratio['median']:>8.2f}"
                )
    print(f"ratio: CPU speed of {OURS} over that of the line")
    return found


def _contenders(options: DataOptions, work: Path) -> dict[str, dict[str, Iterator[object]]]:
    pictures = options.pictures or make_pictures(work / "pictures", count=options.samples, size=PICTURE_SIZE)
    features = options.features or make_features(work / "features", count=options.samples)
    return {
        "pictures": picture_contenders(
            pictures, work / "folders", image_size=options.image_size, batch=options.batch
        ),
        "features": feature_contenders(features, batch=options.batch),
    }


def race(
    contenders: dict[str, Iterator[object]], *, batches: int, batch: int, rounds: int
) -> dict[str, Figure]:
    """Each contender reads `batches` batches a round, in turns; who begins changes."""
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    cpus: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        next(contender)  # opens files
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(batches):
                next(contenders[name])
            walls[name].append((time.perf_counter() - wall) / (batches * batch))
            cpus[name].append((time.process_time() - cpu) / (batches * batch))
    return {
        name: Figure(
            samples_per_s=1 / statistics.median(walls[name]),
            samples_per_cpu_s=1 / statistics.median(cpus[name]),
            ratio=ratios(cpus[name], cpus[OURS]),
        )
        for name in names
    }
