"""Random faults, one after another, over one run on two hosts: it has to end to the bit as a run that nothing
happened to, and to leave nothing behind.

    PYTHONPATH=. python -m tests.cluster.fault_run --faults 20

The hosts are network namespaces of this machine with a rank each, which share their experts; the run
directory lies on a small disk of its own. Whatever ended all ranks, the same command starts them again.
Prints a table: fault, what the run did, seconds to its end and to its next step. Needs root, iproute2; not
part of the tests: a fault takes up to a minute.
"""

import argparse
import fcntl
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from tests.cluster.fault_ranks import Progress, Ranks, disk
from tests.cluster.faults import Fault, World, choose_faults
from tests.cluster.hosts import Host, hosts, kill_host
from tests.kill_run import outcome
from tests.train.runs import TINY, text_settings

TIMEOUT_S = 10
STEP_S = 0.2
DISK_MB = 24
LAST_STEPS = 20
"""After the last fault."""
SAVE_EVERY = 5
WHOLE_S = 1800.0
"""For a whole run."""


@dataclass(frozen=True)
class Recovery:
    """`ended_s` is None if the run did not end."""

    fault: Fault
    ended_s: float | None
    whole_s: float


def settings(folder: Path, run: Path) -> list[str]:
    return [
        *TINY,
        *text_settings(folder),
        "data.workers=1",
        f"checkpoint.every={SAVE_EVERY}",
        f"parallel.timeout_s={TIMEOUT_S}",
        "parallel.expert_parallel=2",
        f"run.directory={run}",
    ]


def arguments(folder: Path, run: Path, *, steps: int) -> list[str]:
    file = folder / f"{run.name}.yaml"
    file.write_text(dump_config(load_config(None, [*settings(folder, run), f"run.steps={steps}"])))
    return ["--config", str(file)]


def meet_fault(world: World, fault: Fault) -> Recovery:
    """Let a fault happen somewhere in the steps of a run, and wait until it is whole again."""
    # Beyond the steps that were trained before: what is trained again would look like progress.
    target = world.progress.step() + world.dice.randint(2, 2 * SAVE_EVERY)
    if not world.ranks.alive():
        world.start()
    world.wait_until("steps", lambda: world.progress.step() >= target)
    time.sleep(world.dice.uniform(0, STEP_S))
    world.began = time.monotonic()
    way = fault.happen(world)
    ended_s = time.monotonic() - world.began if way == "start" else None
    step, saved = world.progress.step(), world.progress.saved()
    if way == "start":
        world.start()
    world.wait_until(
        "progress", lambda: world.progress.saved() > saved if way == "save" else world.progress.step() > step
    )
    if "damaged" in fault.name:
        world.expect("is damaged and not used")
    return Recovery(fault, ended_s, time.monotonic() - world.began)


def run_to_the_end(world: World) -> None:
    codes = world.ranks.wait(limit_s=WHOLE_S)
    assert codes == [0] * len(codes), world.ranks.printed()


def find_leftovers(all_hosts: list[Host], run: RunDirectory, temporary: Path) -> list[str]:
    """Processes, ports, locks and temporary files that should be gone."""
    found = [f"process on {host.name}: {name_process(pid)}" for host in all_hosts for pid in host.processes()]
    found += [f"port on {host.name}: {host.listeners()}" for host in all_hosts if host.listeners()]
    with run.lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(f"{run.lock} is held")
    names = ("*.tmp*", ".doctor*", "stop", "filling")
    found += [str(path) for name in names for path in run.path.parent.rglob(name)]
    return found + [str(path) for path in temporary.iterdir()]


def name_process(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return f"{pid}, which ends just now"


def table(recoveries: list[Recovery]) -> list[str]:
    lines = [
        "| fault | times | what the run does | ended after s | trains or saves again after s |",
        "|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(recovery.fault for recovery in recoveries):
        of_fault = [recovery for recovery in recoveries if recovery.fault is fault]
        ends = [recovery.ended_s for recovery in of_fault if recovery.ended_s is not None]
        ended = spread(ends) if ends else "does not end"
        whole = spread([recovery.whole_s for recovery in of_fault])
        lines.append(f"| {fault.name} | {len(of_fault)} | {fault.answer} | {ended} | {whole} |")
    return lines


def spread(seconds: list[float]) -> str:
    low, high = f"{min(seconds):.0f}", f"{max(seconds):.0f}"
    return low if low == high else f"{low} to {high}"


def work(folder: Path, *, faults: int, seed: int) -> None:
    dice, temporary, outputs = random.Random(seed), folder / "temporary", folder / "outputs"
    for made in (temporary, outputs):
        made.mkdir()
    with hosts(4) as all_hosts, disk(folder / "disk", size_mb=DISK_MB) as small:
        run = small.folder / "run"
        # So many steps that no fault finds the run at its end; the undisturbed one learns the number after.
        world = World(
            Ranks(all_hosts[:2], outputs, temporary),
            Ranks(all_hosts[2:], outputs, temporary, port=29501),
            Progress(run),
            small,
            arguments(folder, run, steps=100_000),
            STEP_S,
            dice,
        )
        recoveries = []
        try:
            for number, fault in enumerate(choose_faults(faults, dice), start=1):
                recoveries.append(meet_fault(world, fault))
                last = recoveries[-1]
                ended = "went on" if last.ended_s is None else f"ended after {last.ended_s:.1f} s"
                line = f"fault {number}: {fault.name}: {ended}, whole after {last.whole_s:.1f} s"
                print(f"{line}, at step {world.progress.step()}", flush=True)
            finish(world, folder)
        finally:
            for host in all_hosts:
                kill_host(host)
        print("\n".join(table(recoveries)))
        print(f"\nafter {statistics.fmean(recovery.whole_s for recovery in recoveries):.0f} s in the mean")
        left = find_leftovers(all_hosts, world.progress.run, temporary)
        assert not left, f"left behind: {left}"
    print("nothing was left behind")


def finish(world: World, folder: Path) -> None:
    """End the run, and compare it with one that nothing happened to."""
    steps = world.progress.step() + LAST_STEPS
    world.progress.run.stop_request.touch()
    assert world.ranks.wait() == [75, 75], world.ranks.printed()
    world.arguments = arguments(folder, world.progress.run.path, steps=steps)
    world.start()
    run_to_the_end(world)
    whole = folder / "whole"
    world.arguments, world.step_s = arguments(folder, whole, steps=steps), 0.0
    world.start()
    run_to_the_end(world)
    found, expected = outcome(world.progress.run.path), outcome(whole)
    lines = [one for one in found["lines"] if one not in expected["lines"]]
    lines += [one for one in expected["lines"] if one not in found["lines"]]
    assert found["data"] == expected["data"], f"its weights differ from an undisturbed run's; lines: {lines}"
    assert found == expected, f"its lines differ from an undisturbed run's: {lines}"
    print(f"{steps} steps, to the bit those of an undisturbed run", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fault_run_"))
    work(folder, faults=parsed.faults, seed=parsed.seed)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
