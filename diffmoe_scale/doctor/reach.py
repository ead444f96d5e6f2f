"""The same command on all nodes of a job, and the answers."""

import contextlib
import json
import os
import re
import shlex
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffmoe_scale.config.check import RunError
from diffmoe_scale.doctor.facts import Facts

ANSWER = "DOCTOR "
ANSWER_S = 120
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]


class _Clock(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)
        self.request.sendall(repr(time.time()).encode())


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """This node's clock answers at the port, on every network. Raises: ValueError if it is taken."""
    try:
        server = _Server(("", port), _Clock)
    except OSError as error:
        raise ValueError(f"--port is {port}, which cannot be used here ({error}); choose another") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def read_hosts(hostfile: Path) -> list[str]:
    """The hosts of DeepSpeed's host file, one a line, `NAME slots=N`. Raises: ValueError."""
    hosts = []
    for number, line in enumerate(hostfile.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch(r"slots=\d+", words[1]):
            raise ValueError(f"{hostfile} line {number} is {line.strip()!r}; expected `NAME slots=N`")
        hosts.append(words[0])
    if not hosts:
        raise ValueError(f"{hostfile} names no host; expected a line `NAME slots=N` for each")
    return hosts


def ask(hosts: Sequence[str], command: Sequence[str], *, root: Path) -> tuple[list[Facts], list[str]]:
    """Run the command in the folder `root` of every host, over ssh, at the same time. The facts, and why
    hosts gave none."""
    words = f"cd {shlex.quote(str(root))} && {shlex.join(command)}"
    started = {host: _start([*SSH, host, words]) for host in hosts}
    return _answers(started)


def ask_slurm(command: Sequence[str]) -> tuple[list[Facts], list[str]]:
    """On every node of this SLURM job, by one srun."""
    srun = [
        "srun",
        "--ntasks-per-node=1",
        f"--nodes={os.environ['SLURM_JOB_NUM_NODES']}",
        "--kill-on-bad-exit=0",
    ]
    return _answers({"srun": _start([*srun, *command])})


def ask_here(command: Sequence[str]) -> tuple[list[Facts], list[str]]:
    return _answers({"this machine": _start(command)})


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answers(started: dict[str, subprocess.Popen[str]]) -> tuple[list[Facts], list[str]]:
    facts, silent = [], []
    give_up = time.monotonic() + ANSWER_S
    for name, process in started.items():
        try:
            out, error = process.communicate(timeout=max(1, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            error = f"no answer in {ANSWER_S} s"
        found = [json.loads(line[len(ANSWER) :]) for line in out.splitlines() if line.startswith(ANSWER)]
        facts += [Facts(**entry) for entry in found]
        if not found or process.returncode != 0:
            last = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            silent.append(f"{name}: gave no answer ({last})")
    return facts, silent


def slurm_nodes() -> int:
    """Nodes of the SLURM job that this is, 0 outside of one."""
    text = os.environ.get("SLURM_JOB_NUM_NODES", "0")
    if not text.isdecimal():
        raise RunError(f"SLURM_JOB_NUM_NODES is {text!r}; expected a number")
    return int(text)
