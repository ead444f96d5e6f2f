"""What telemetry costs: its own seconds within the steps of one real run.

Parts are timed where they are called, each without those inside it; on a GPU both ends wait for the device,
so that what would run beside other work counts, too.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any  # any method

import torch

from diffmoe_scale.bench.timing import quartiles
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import finalize, initialize
from diffmoe_scale.telemetry.phases import Phases
from diffmoe_scale.train.reporter import ALL_TO_ALL, OTHER_PHASES, STEP_PHASES, Reporter
from diffmoe_scale.train.setup import set_up
from diffmoe_scale.train.trainer import Training, train_step

FIGURES, LINES = "figures of steps", "lines and trackers"
PHASES, HEALTH, NORMS = "phases", "expert health", "gradient norm by part"
PARTS = (PHASES, FIGURES, HEALTH, NORMS, LINES)


@dataclass
class PartClock:
    """Seconds by part; of parts inside one another each second counts for the innermost."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    _inside: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._turn()
        self._inside.append(part)
        yield
        self._turn()
        self._inside.pop()

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def watch(self, part: str, owner: object, *names: str) -> None:
        """Time methods of an object."""
        for name in names:
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self(part):
                return method(*arguments, **options)

        return timed


class TimedPhases(Phases):
    """Phases that time their own beginning and end."""

    def __init__(self, clock: PartClock) -> None:
        super().__init__(clock.device, (*STEP_PHASES, ALL_TO_ALL, *OTHER_PHASES))
        self._clock = clock

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        phase = super().__call__(name)
        with self._clock(PHASES):
            phase.__enter__()
        yield
        with self._clock(PHASES):
            phase.__exit__(None, None, None)


def bench_telemetry(
    file: Path | None, settings: list[str], *, steps: int
) -> tuple[list[dict[str, object]], dict[str, object], torch.device]:
    """Rows by part, what they are of, and the device. One process; the run's folder is a temporary one. Once
    a process."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(file, [*settings, f"run.directory={folder}/run", "run.steps=1000000"])
        context = initialize(expert_parallel=1, timeout_s=600)
        run = set_up(config, context, RunDirectory(Path(config.run.directory)))
        clock = PartClock(context.device)
        with run.store:
            step_s = time_steps(run, clock, steps=steps)
        finalize()
    total = sum(step_s)
    bare = total - sum(clock.seconds.values())
    rows: list[dict[str, object]] = [
        {
            "part": part,
            "ms_a_step": 1e3 * seconds / steps,
            "percent_of_the_rest": 100 * seconds / bare,
        }
        for part, seconds in {**clock.seconds, "all": total - bare}.items()
    ]
    about = {
        "steps": steps,
        "log_every": config.telemetry.log_every,
        "step_ms": quartiles([1e3 * seconds for seconds in step_s]),
        "percent": 100 * (total - bare) / bare,
    }
    return rows, about, context.device


def take_step(run: Training, reporter: Reporter) -> None:
    """A step with its line, where one is due."""
    run.step += 1
    train_step(run, reporter)
    run.position = run.plan.advance(run.position)
    reporter.add(run.reader.dataset_counts(run.position))
    reporter.end_step(run.step, run.position.samples)


def time_steps(run: Training, clock: PartClock, *, steps: int) -> list[float]:
    """Seconds of each of `steps` steps with their lines, after those up to the first line."""
    seconds, warm_up = [], run.config.telemetry.log_every
    with run.reporter() as reporter:
        reporter.phase = TimedPhases(clock)
        clock.watch(
            FIGURES, reporter, "begin_step", "add_batch", "add_loss", "add_step", "add_verdict", "add"
        )
        clock.watch(HEALTH, reporter.health, "add", "take")
        clock.watch(NORMS, run.engine.zero, "gradient_squares")
        clock.watch(LINES, reporter, "end_step")
        for _ in range(warm_up + steps):
            begun = time.perf_counter()
            take_step(run, reporter)
            seconds.append(time.perf_counter() - begun)
            if run.step == warm_up:
                seconds = []
                clock.seconds |= dict.fromkeys(PARTS, 0.0)
    return seconds
