"""Rows at work: the processes of several at once, each row's one after the other.

Stopped at any time, also by SIGKILL or a power cut, the same call goes on: a training from its newest
checkpoint, scores behind the last picture.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from diffmoe_scale import __version__
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.lock import is_held
from diffmoe_scale.study.commands import CURVE, LAST, TRAINING, write_settings
from diffmoe_scale.study.cost import Cost, duration
from diffmoe_scale.study.process import start_process
from diffmoe_scale.study.record import (
    RowResult,
    deployed_rule,
    read_losses,
    read_scores,
    write_row,
)
from diffmoe_scale.study.variants import Row

logger = logging.getLogger(__name__)

POLL_S = 0.2
STAGES = (TRAINING, CURVE, LAST)

Start = Callable[[Sequence[str], IO[bytes], Mapping[str, str]], subprocess.Popen[bytes]]


@dataclass
class Worker:
    """A row at work: the process of its present stage."""

    row: Row
    cost: Cost
    at_once: int
    start: Start
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    commands: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    is_waiting: bool = False
    logged: int = 0
    """Bytes of the log before the process."""

    def go_on(self) -> bool:
        """Look at the process and start the next; whether the row is done.

        Raises: RunError for a process that failed, or left no numbers; OSError.
        """
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return False
            add_seconds(self.row, self.stages[0], time.monotonic() - self.began)
            self.process = None
            if code != 0:
                said = last_line(self.row.log, self.logged)
                raise RunError(f"{self.stages[0]} ended with {code}: {said} ({self.row.log})")
            self.stages.pop(0)
        if self._waits():
            return False
        while self.stages and self.process is None:
            self._start_stage(self.stages[0])
        if self.stages:
            return False
        self._finish()
        return True

    def _waits(self) -> bool:
        """Whether the training of a study that was killed still saves its checkpoint."""
        if self.stages[:1] != [TRAINING] or not is_held(RunDirectory(self.row.run).lock):
            return False
        if not self.is_waiting:
            logger.info("%s: another process trains in %s; waiting for its end", self.row.name, self.row.run)
        self.is_waiting = True
        return True

    def _start_stage(self, stage: str) -> None:
        """Start its process, or drop it where there is nothing to do."""
        command = write_settings(self.row, stage)
        if command is None:
            self.stages.pop(0)
            return
        self.commands.append(str(command))
        self.row.log.parent.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.at_once)
        logger.info("%s: %s", self.row.name, stage)
        with self.row.log.open("ab") as log:
            self.logged = log.seek(0, os.SEEK_END)
            self.process = self.start(command.words, log, {"OMP_NUM_THREADS": str(threads)})
        self.began = time.monotonic()

    def _finish(self) -> None:
        """Write the row's numbers. Raises: RunError, ValueError, OSError."""
        row = self.row
        losses, capacities = read_losses(row)
        result = RowResult(
            variant=row.variant.name,
            seed=row.seed,
            fingerprint=row.fingerprint,
            training=row.training,
            run=str(row.run),
            steps=row.config.run.steps,
            rule=deployed_rule(row),
            losses=losses,
            capacities=capacities,
            loss=losses[-1][1],
            scores=read_scores(row),
            flops=self.cost.forward,
            training_flops=self.cost.training,
            seconds=read_seconds(row),
            at_once=self.at_once,
            commands=self.commands,
            version=__version__,
        )
        write_row(row, result)
        score = result.score
        logger.info(
            "%s: loss %.5f, score %.3f (%s)",
            row.name,
            result.loss,
            score.mean,
            duration(result.total_seconds),
        )

    def stop(self) -> None:
        """Ask the process to end, a training with a checkpoint, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
        if self.process is not None:
            self.process.wait()
            add_seconds(self.row, self.stages[0], time.monotonic() - self.began)


def work_on(
    rows: Sequence[Row],
    costs: Mapping[str, Cost],
    *,
    at_once: int,
    report: Callable[[], None],
    is_stopped: Callable[[], bool],
    start: Start | None = None,
) -> dict[str, str]:
    """Make the rows, which are not done, and call `report` after each. Why rows failed, by their names; the
    others are made all the same. Returns early once `is_stopped`."""
    waiting, working = list(rows), list[Worker]()
    failures: dict[str, str] = {}
    try:
        while (waiting or working) and not is_stopped():
            busy = {worker.row.run for worker in working}
            ready = next((row for row in waiting if row.run not in busy), None)
            if len(working) < at_once and ready is not None:
                waiting.remove(ready)
                working.append(Worker(ready, costs[ready.variant.name], at_once, start or start_process))
            for worker in list(working):
                try:
                    is_done = worker.go_on()
                except (RunError, ValueError) as error:
                    failures[worker.row.name] = str(error)
                    logger.warning("%s failed, the others go on: %s", worker.row.name, error)
                    is_done = True
                if is_done:
                    working.remove(worker)
                    report()
            time.sleep(POLL_S)
    finally:
        for worker in working:
            worker.stop()
    return failures


def seconds_file(row: Row, stage: str) -> Path:
    name = row.run.name if stage == TRAINING else row.name
    return Path(row.study.output) / "seconds" / f"{name}.{stage}.json"


def add_seconds(row: Row, stage: str, seconds: float) -> None:
    path = seconds_file(row, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_seconds(row).get(stage, 0.0)
    replace_file(path, json.dumps(round(before + seconds, 1)).encode())


def read_seconds(row: Row) -> dict[str, float]:
    """Wall time of the row's processes so far, by stage; a training that it shares counts whole."""
    found = {}
    for stage in STAGES:
        try:
            found[stage] = float(parse_json(seconds_file(row, stage).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found[stage] = 0.0
    return found


def last_line(log: Path, begin: int) -> str:
    """The last line of a log, from the byte `begin`, that says something."""
    try:
        text = log.read_bytes()[begin:].decode("utf-8", "replace")
    except OSError:
        return "its log cannot be read"
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (errors or lines or ["it printed nothing"])[-1][:300]
