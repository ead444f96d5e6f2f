"""The same command on all nodes of a job, and the answers."""

import contextlib
import os
import re
import shlex
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what nodes answer

from diffmoe_scale.config.check import RunError
from diffmoe_scale.json_text import parse_json

ANSWER = "DOCTOR "
ANSWER_S = 120
NODE_NAME = "DIFFMOE_NODE_NAME"
"""The variable in which a host has its name of the host file."""
OF_STEP = "step"
"""A node's number that its SLURM step knows."""
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


@dataclass(frozen=True)
class Nodes:
    """All nodes of a job: hosts over ssh, else those of this SLURM job, else this machine."""

    hosts: Sequence[str]
    count: int
    root: Path
    """The project folder, the same on all hosts."""

    def ask(self, command: Sequence[str], *, is_numbered: bool = False) -> tuple[list[Any], list[str]]:
        """Run the command on every node at the same time, with the node's number behind it if `is_numbered`
        (of SLURM's nodes `step`). What nodes answered, and why nodes gave no answer."""
        if self.hosts:
            started = {}
            for i, host in enumerate(self.hosts):
                own = [*command, *([str(i)] if is_numbered else [])]
                started[host] = _start([*SSH, host, self._words(host, own)])
            return _answers(started)
        number = [OF_STEP if self.count > 1 else "0"] if is_numbered else []
        if self.count == 1:
            return _answers({"this machine": _start([*command, *number])})
        srun = ["srun", "--ntasks-per-node=1", f"--nodes={self.count}", "--kill-on-bad-exit=0"]
        return _answers({"srun": _start([*srun, *command, *number])})

    def _words(self, host: str, command: Sequence[str]) -> str:
        """The operator knows the nodes by the names of the host file, and not by their own."""
        return f"cd {shlex.quote(str(self.root))} && {NODE_NAME}={shlex.quote(host)} {shlex.join(command)}"


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answers(started: dict[str, subprocess.Popen[str]]) -> tuple[list[Any], list[str]]:
    answers, silent = [], []
    give_up = time.monotonic() + ANSWER_S
    for name, process in started.items():
        try:
            out, error = process.communicate(timeout=max(1, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            error = f"no answer in {ANSWER_S} s"
        found = [parse_json(line[len(ANSWER) :]) for line in out.splitlines() if line.startswith(ANSWER)]
        answers += found
        if not found or process.returncode != 0:
            last = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            silent.append(f"{name}: gave no answer ({last})")
    return answers, silent


def is_own(host: str) -> bool:
    """Whether this machine has the address of a name: a socket can be bound to it."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as end:
            end.bind(address)
    except OSError:
        return False
    return True


def slurm_nodes() -> int:
    """Nodes of the SLURM job that this is, 0 outside of one."""
    text = os.environ.get("SLURM_JOB_NUM_NODES", "0")
    if not text.isdecimal():
        raise RunError(f"SLURM_JOB_NUM_NODES is {text!r}; expected a number")
    return int(text)
