"""A real SLURM of several nodes on this machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import kill_all, term_unwinds, with_variable
from tests.ports import free_port

CONFIG = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
JobRequeue=1
SlurmdTimeout=15
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
START_S, JOB_S = 60, 900
ASK_TIMES = 5


@dataclass(frozen=True)
class Slurm:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, **variables: str) -> str:
        """What a program of SLURM answers. Raises: CalledProcessError."""
        answer = subprocess.run(
            command, env=self.environment | variables, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    def ask(self, *command: str) -> str:
        """The same of a question, again where the program died: SLURM 22.05 does by SIGPIPE now and then when
        the controller is slow."""
        for _ in range(ASK_TIMES - 1):
            try:
                return self.run(*command)
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise
                time.sleep(1)
        return self.run(*command)

    def wait_for_nodes(self, count: int) -> None:
        give_up = time.monotonic() + START_S
        while self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") != str(count):
            assert time.monotonic() < give_up, f"the nodes are not idle in {START_S} s; see {self.folder}"
            time.sleep(0.2)

    def state(self, job: str) -> str:
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.removeprefix("JobState=") for word in words if word.startswith("JobState="))

    def wait(self, job: str) -> str:
        """Until the job has ended for good: its state."""
        give_up = time.monotonic() + JOB_S
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"):
            assert time.monotonic() < give_up, f"job {job} is {state} after {JOB_S} s"
            time.sleep(0.5)
        return state


@contextlib.contextmanager
def slurm(folder: Path, *, nodes: int = 2, settings: str = "") -> Iterator[Slurm]:
    """Nodes n1, n2, ... and a controller, with a munge of their own; `settings` are lines for slurm.conf. At
    the end they are gone, with all jobs. Needs root, slurm-wlm and munge."""
    folder.mkdir(parents=True)
    names, host = [f"n{number}" for number in range(1, nodes + 1)], socket.gethostname()
    for path in ("state", *(f"spool/{name}" for name in names)):
        (folder / path).mkdir(parents=True)
    ports = [free_port() for _ in range(nodes + 1)]
    lines = [
        NODE.format(name=name, host=host, port=port) for name, port in zip(names, ports[1:], strict=True)
    ]
    config = folder / "slurm.conf"
    lines.append(settings)
    config.write_text(CONFIG.format(folder=folder, host=host, ports=ports, nodes="\n".join(lines)))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    made = Slurm(folder, os.environ | {"SLURM_CONF": str(config)})
    with term_unwinds():
        try:
            files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            made.run("munged", "--force", f"--socket={folder}/munge.socket", *files)
            made.run("slurmctld")
            for name in names:
                made.run("slurmd", "-N", name)
            made.wait_for_nodes(nodes)
            yield made
        finally:
            for name in (*names, "slurmctld", "munge"):
                stop_daemon(folder / f"{name}.pid")
            # A job lives on without its slurmd; a daemon that died early wrote no number.
            kill_all(lambda: with_variable("SLURM_CONF", str(config)))


def stop_daemon(pid_file: Path) -> None:
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text(encoding="utf-8"))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + START_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
            time.sleep(0.05)


def missing(*programs: str) -> str:
    """Why the tests of a cluster cannot run here; "" if they can."""
    if os.geteuid() != 0:
        return "needs root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [program for program in programs if shutil.which(program, path=path) is None]
    return f"has no {', '.join(absent)}: tests/cluster/packages.sh installs them" if absent else ""
