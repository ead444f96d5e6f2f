"""What a node finds out about itself: on every node at the same time, by the standard library alone."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from diffmoe_scale.doctor.reach import NODE_NAME

DISK_BYTES = 64 * 2**20
PATIENCE_S = 20.0
"""For the marks of the other nodes to be seen in the shared folder."""
COMPILERS = ("g++", "ninja")
GPU_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
COMMAND_S = 30


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a node. Where something could not be found out, a sentence in `problems` says why."""

    host: str
    python: str
    packages: dict[str, str]
    """Versions of what setup.py asks for; a package that is not there is missing."""
    gpus: list[str]
    """Name and driver of each."""
    missing_tools: list[str]
    write_mb_s: float
    """Of the shared folder, with a flush; 0 if it cannot be written to."""
    seen: list[str]
    """Hosts whose marks are in the shared folder."""
    clock_offset_s: float | None
    """This node's clock over the head's; None if the head's port did not answer."""
    free_gb: float
    shared_memory_gb: float
    open_files: int
    problems: list[str] = field(default_factory=list)


def find_facts(folder: Path, *, nodes: int, head: str, port: int, root: Path) -> Facts:
    """Of this node: `folder` is shared by all `nodes`, `head` listens at `port`, `root` holds setup.py."""
    problems: list[str] = []
    speed = _write_speed(folder, problems)
    return Facts(
        host=node_name(),
        python=f"{platform.python_version()} at {sys.executable}",
        packages=_versions(root),
        gpus=_gpus(problems),
        missing_tools=[name for name in COMPILERS if not _is_there(name)],
        write_mb_s=speed,
        seen=_marks(folder, nodes),
        clock_offset_s=_clock_offset(head, port, problems),
        free_gb=_free_gb(folder),
        shared_memory_gb=_free_gb(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        problems=problems,
    )


def node_name() -> str:
    """What the host file or the scheduler calls this node, where they say so; else the host's name."""
    named = os.environ.get(NODE_NAME) or os.environ.get("SLURMD_NODENAME")
    return named or socket.gethostname()


def required_packages(root: Path) -> list[str]:
    """Names in setup.py's install_requires."""
    text = (root / "setup.py").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"install_requires=\[(.*?)\]", text, re.DOTALL)
    return re.findall(r'"([A-Za-z0-9_.-]+)', wanted)


def _versions(root: Path) -> dict[str, str]:
    found = {}
    for name in required_packages(root):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _is_there(tool: str) -> bool:
    """On PATH, or beside Python as in a virtual environment, which launchers put on PATH."""
    return shutil.which(tool) is not None or Path(sys.executable).with_name(tool).exists()


def _gpus(problems: list[str]) -> list[str]:
    if shutil.which(GPU_QUERY[0]) is None:
        return []
    try:
        answer = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append(f"nvidia-smi does not answer ({error})")
        return []
    if answer.returncode != 0:
        problems.append(f"nvidia-smi failed: {(answer.stderr or answer.stdout).strip()[:200]}")
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _write_speed(folder: Path, problems: list[str]) -> float:
    """MB/s of a file that is written through to the disk."""
    path = folder / f"speed-{node_name()}-{os.getpid()}"
    block = os.urandom(2**20)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        took = time.perf_counter() - started
        path.unlink()
    except OSError as error:
        problems.append(f"{folder} cannot be written to ({error})")
        return 0.0
    return DISK_BYTES / 1e6 / took


def _marks(folder: Path, nodes: int) -> list[str]:
    """Leave this node's mark and wait for those of the others."""
    with contextlib.suppress(OSError):
        (folder / f"mark-{node_name()}").touch()
    give_up = time.monotonic() + PATIENCE_S
    while True:
        seen = sorted(path.name.removeprefix("mark-") for path in folder.glob("mark-*"))
        if len(seen) >= nodes or time.monotonic() > give_up:
            return seen
        time.sleep(0.2)


def _clock_offset(head: str, port: int, problems: list[str]) -> float | None:
    """From the head's clock, which it sends; half of the way there and back is taken off."""
    try:
        with socket.create_connection((head, port), timeout=10) as connection:
            started = time.time()
            connection.sendall(b"?")
            told = float(connection.recv(64))
            ended = time.time()
    except (OSError, ValueError) as error:
        problems.append(f"port {port} of {head} does not answer ({error})")
        return None
    return (started + ended) / 2 - told


def _free_gb(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return 0.0
