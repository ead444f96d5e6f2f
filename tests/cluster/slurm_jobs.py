"""Training jobs on a SLURM of two nodes, and what ends them before their time."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffmoe_scale.telemetry.metrics import read_metrics
from tests.cluster.slurm import Slurm
from tests.launch.scripts import ROOT, SBATCH
from tests.ports import free_port

TORCHRUN = SBATCH.with_name("pretrain_torchrun.sbatch")
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
OWN = {
    "PROJECT": str(ROOT),
    "VENV": str(Path(sys.executable).parents[1]),
    "PYTHONPATH": str(ROOT),
    "MASTER_ADDR": "127.0.0.1",
}
"""What a job needs to know here."""
WAIT_S = 600.0
"""For a start, a step, a state of SLURM."""
LIMIT = 60
"""The time limit of a job in minutes."""


@dataclass(frozen=True)
class Job:
    """A job of a run in a directory of its own."""

    cluster: Slurm
    number: str
    run: Path
    output: Path

    def step(self) -> int:
        return max((line["step"] for line in read_metrics(self.run / "metrics.jsonl")), default=0)

    def field(self, name: str) -> str:
        """Of `scontrol show job`."""
        words = self.cluster.ask("scontrol", "--oneliner", "show", "job", self.number).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(f"{name}="))

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + WAIT_S
        while not condition():
            late = f"{what} did not come in {WAIT_S:g} s; the job is {self.field('JobState')}"
            assert time.monotonic() < give_up, f"{late}:\n{self.printed()}"
            failed = self.field("JobState") in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED")
            assert not failed, f"the job is {self.field('JobState')} before {what}:\n{self.printed()}"
            time.sleep(0.2)

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def submit(cluster: Slurm, script: Path, config: Path, run: Path, *options: str, **variables: str) -> Job:
    """A job of `script` on both nodes, one rank each."""
    output = run.with_suffix(".log")
    own = OWN | {"MASTER_PORT": str(free_port())}
    number = cluster.run(
        *("sbatch", "--parsable", *OPTIONS, f"--time={LIMIT}", f"--output={output}", *options, str(script)),
        *("--config", str(config), f"run.directory={run}"),
        **own,
        **variables,
    )
    return Job(cluster, number, run, output)


def leave_alone(job: Job) -> None:
    """Nothing happens."""


def signal_ranks(job: Job) -> None:
    job.cluster.run("scancel", "--signal=USR1", job.number)


def signal_script(job: Job) -> None:
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.number)


def requeue(job: Job) -> None:
    job.cluster.run("scontrol", "requeue", job.number)


def touch_stop(job: Job) -> None:
    (job.run / "stop").touch()


def reach_time_limit(job: Job) -> None:
    """The limit becomes one to two minutes from now, so that SLURM sends its signal at its next look;
    it is the old one again when the job is back in the queue. The ranks stand still until the signal: they
    would be done before it."""
    ranks = [pid for node in ("n1", "n2") for pid in _processes(node) if _is_rank(pid)]
    assert ranks, "no rank runs"
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    hours, minutes, _ = job.field("RunTime").split(":")
    soon = 60 * int(hours) + int(minutes) + 2
    job.cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={soon}")
    stop = job.run / "stop"
    job.wait_until("SLURM's signal", lambda: stop.exists() or not any(map(_stands_still, ranks)))
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    job.wait_until("the way back into the queue", lambda: job.field("Restarts") == "1")
    job.cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={LIMIT}")


def _is_rank(pid: int) -> bool:
    words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    name = (Path("/proc") / str(pid) / "comm").read_text(encoding="utf-8").strip()
    return b"diffmoe_scale.pretrain" in words and b"--nnodes" not in words and name.startswith("python")


def _stands_still(pid: int) -> bool:
    """Whether the process is stopped and no USR1 waits for it; with the signal SLURM may let it go on."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    is_signalled = int(values["ShdPnd"], 16) >> (signal.SIGUSR1 - 1) & 1
    return values["State"].startswith("T") and not is_signalled


def lose_first_node(job: Job) -> None:
    """Where the job's script runs."""
    _lose(job, "n1")


def lose_second_node(job: Job) -> None:
    _lose(job, "n2")


def _lose(job: Job, node: str) -> None:
    """Its slurmd and all that the job runs there are gone, until SLURM has noticed."""
    daemon = int((job.cluster.folder / f"{node}.pid").read_text(encoding="utf-8"))
    victims = [daemon, *_processes(node)]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.wait_until(
        "a node that is down", lambda: job.cluster.run("sinfo", "-hn", node, "-o", "%T").startswith("down")
    )
    job.cluster.run("slurmd", "-N", node)


def _processes(node: str) -> list[int]:
    """What jobs run there, and the daemons that started them."""
    found: dict[int, None] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURMD_NODENAME={node}".encode() not in variables:
                continue
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = None
            if (Path("/proc") / str(parent) / "comm").read_text().startswith("slurmstepd"):
                found[parent] = None
    return list(found)
