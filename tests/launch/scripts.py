"""The launchers as programs: started with variables of their own, and with programs in others' places."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain_t2i.sh"
SBATCH = ROOT / "launch" / "slurm" / "pretrain.sbatch"
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
# A master port of one's own: deepspeed's default is fixed, and another run on this machine may hold it.
PORT = str(20000 + os.getpid() % 9000)
OWN_VARIABLES = (
    "NPROC",
    "DEEPSPEED_ARGS",
    "PROJECT",
    "VENV",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NETWORK",
    "THREADS",
    "SRUN_ARGS",
    "RESTARTS",
    "RESTART_AFTER_S",
)


def run(command: Sequence[object], *, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


def write_program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
