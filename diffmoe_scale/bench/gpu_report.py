"""Measurements in parts, each a process with a time limit: a part that breaks costs itself only, and what is
done is on disk.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from diffmoe_scale.files import replace_file

TAIL = 20
"""Lines of a part's output that its result keeps."""


@dataclass(frozen=True)
class Part:
    """A command of its own process. `{out}` in a word is the folder of the report."""

    name: str
    limit_s: float
    command: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """`outcome` is ok, failed, `out of time`, or `not begun` where the time of the whole was over."""

    name: str
    outcome: str
    seconds: float
    command: tuple[str, ...]
    tail: tuple[str, ...] = ()
    """The last lines of its output; all is in NAME.log."""


def run_parts(parts: Sequence[Part], folder: Path, *, limit_s: float) -> list[Result]:
    """Run one part after another, in `limit_s` in all; report.json is written anew after each."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit_s
    results: list[Result] = []
    for part in parts:
        result = run_part(part, folder, limit_s=min(part.limit_s, end - time.monotonic()))
        results.append(result)
        print(f"{result.outcome:12s} {result.seconds:6.1f} s  {part.name}", flush=True)
        text = json.dumps([asdict(result) for result in results], indent=1) + "\n"
        replace_file(folder / "report.json", text.encode())
    return results


def run_part(part: Part, folder: Path, *, limit_s: float) -> Result:
    """Its output goes to NAME.log. At the limit it is killed, and all that it started."""
    command = tuple(word.replace("{out}", str(folder)) for word in part.command)
    if limit_s <= 0:
        return Result(part.name, "not begun", 0.0, command)
    begin, log = time.monotonic(), folder / f"{part.name}.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Result(part.name, "failed", 0.0, command, (str(error),))
        try:
            outcome = "ok" if process.wait(timeout=limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
        finally:
            end_session(process)
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return Result(part.name, outcome, time.monotonic() - begin, command, tuple(tail))


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and what it left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
