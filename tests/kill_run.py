"""Kill a small run with SIGKILL at random moments until it is done, and compare it to the bit with one that
was not interrupted.

    PYTHONPATH=. python -m tests.kill_run --kills 30 --folder /tmp/kills

Two ranks that share their experts save every other step, so that most kills meet a save. One rank or both are
killed, by turns; a survivor has to end by itself. Not part of the quick tests: a kill takes seconds.
"""

import argparse
import faulthandler
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any  # processes of a context, lines of metrics.jsonl

from diffmoe_scale.checkpoint.manifest import complete_checkpoints, read_manifest
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext, is_peer_failure
from diffmoe_scale.pretrain import leave
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.ranks import run_on_ranks, start_ranks
from tests.train.runs import text_settings, tiny_config

WORLD_SIZE = 2
SURVIVOR_S = 80
CLOCKED = ("time", "throughput", "memory")


def train_on(context: ParallelContext, settings: list[str]) -> None:
    """Train, and end as a rank of a real run does."""
    config = tiny_config([*settings, f"parallel.expert_parallel={WORLD_SIZE}"])
    faulthandler.dump_traceback_later(SURVIVOR_S / 2)
    try:
        train(config, context, RunDirectory(Path(config.run.directory)))
    except Exception as error:
        if not is_peer_failure(error):
            traceback.print_exc()
        leave(1)
    faulthandler.cancel_dump_traceback_later()


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on kills: each step's figures, and the bytes of the last checkpoint."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith(CLOCKED)}
        for line in read_metrics(run / "metrics.jsonl")
    ]
    files = read_manifest(complete_checkpoints(run / "checkpoints")[-1]).files
    return {"lines": lines, "data": {name: file for name, file in files.items() if name.endswith(".distcp")}}


def newest_step(run: Path) -> int:
    return max(
        (int(path.name.removeprefix("step_")) for path in complete_checkpoints(run / "checkpoints")),
        default=0,
    )


def last_line(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run / "metrics.jsonl")), default=0)


def kill_once(run: Path, settings: list[str], steps: int, *, rank: int | None, dice: random.Random) -> str:
    """Start the run, kill `rank` (None: all) somewhere in the steps, and say what the kill met; "done" if the
    run was faster."""
    before = newest_step(run)
    # Beyond the lines of killed steps, so that the kill meets new ones.
    target = min(steps, last_line(run) + dice.randint(1, 6))
    moment_s = dice.uniform(0, 0.3)
    with tempfile.TemporaryDirectory() as meeting:
        ranks, _ = start_ranks(train_on, WORLD_SIZE, meeting, settings, expert_parallel=WORLD_SIZE)
        return _kill(run, ranks, before=before, target=target, moment_s=moment_s, rank=rank)


def _kill(run: Path, ranks: list[Any], *, before: int, target: int, moment_s: float, rank: int | None) -> str:
    while last_line(run) < target:
        time.sleep(0.002)
        if all(process.exitcode is not None for process in ranks):
            assert all(process.exitcode == 0 for process in ranks), "a restart failed by itself"
            return "done"
    time.sleep(moment_s)
    for number, process in enumerate(ranks):
        if rank is None or number == rank:
            process.kill()
    for process in ranks:
        process.join(SURVIVOR_S)
        assert process.exitcode is not None, "a survivor hangs"
    assert newest_step(run) >= before, "the newest complete checkpoint went back"
    if all(process.exitcode == 0 for process in ranks):
        return "done"
    return "in a save" if list((run / "checkpoints").glob("*.tmp")) else "between saves"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=60, help="of a run (60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where runs are written and removed again; the machine's temporary folder if none",
    )
    parsed = parser.parse_args()
    if parsed.folder is not None:
        parsed.folder.mkdir(parents=True, exist_ok=True)
    folder, dice = Path(tempfile.mkdtemp(dir=parsed.folder, prefix="kill_run_")), random.Random(parsed.seed)
    common = [*text_settings(folder), "checkpoint.every=2", f"run.steps={parsed.steps}"]
    run_on_ranks(
        train_on, WORLD_SIZE, [*common, f"run.directory={folder / 'whole'}"], expert_parallel=WORLD_SIZE
    )
    expected = outcome(folder / "whole")
    kills: list[str] = []
    runs = 0
    while len(kills) < parsed.kills:
        run, met = folder / f"killed_{runs}", ""
        settings = [*common, f"run.directory={run}"]
        while met != "done" and len(kills) < parsed.kills and last_line(run) < parsed.steps:
            rank = (None, 0, 1)[len(kills) % 3]
            met = kill_once(run, settings, parsed.steps, rank=rank, dice=dice)
            if met != "done":
                kills.append(met)
                print(
                    f"kill {len(kills)}: {'all' if rank is None else f'rank {rank}'}, {met}, complete to "
                    f"step {newest_step(run)}",
                    flush=True,
                )
        if met != "done":
            run_on_ranks(train_on, WORLD_SIZE, settings, expert_parallel=WORLD_SIZE)
        assert outcome(run) == expected, f"{run} differs from an uninterrupted run"
        runs += 1
    print(
        f"{len(kills)} kills, {kills.count('in a save')} of them in a save: {runs} runs ended to the bit "
        "as an uninterrupted one"
    )
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
