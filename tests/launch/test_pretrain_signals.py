"""Signals that launch/pretrain_t2i.sh gets while it trains."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.config.load import dump_config, load_config
from tests.launch.scripts import DEEPSPEED, PORT, SCRIPT, write_program
from tests.train.runs import TINY, text_settings

RANK = """#!{python}
# In deepspeed's place: ends like a rank that is asked to by USR1, and unlike one when `stubborn` is there.
import pathlib, signal, sys, time
folder = pathlib.Path("{folder}")
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
signal.signal(signal.SIGUSR1, lambda *_: None if (folder / "stubborn").exists() else sys.exit(75))
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("signals", "code", "is_stubborn"),
    [
        ([signal.SIGTERM], 75, False),
        ([signal.SIGUSR2], 75, False),
        ([signal.SIGHUP], 75, False),
        ([signal.SIGINT], 130, False),
        ([signal.SIGINT, signal.SIGINT], 137, True),
    ],
    ids=["SIGTERM", "SIGUSR2", "SIGHUP", "SIGINT", "SIGINT twice"],
)
def test_bash_asks_the_ranks_to_end_when_it_gets_a_signal(
    copy: Path, tmp_path: Path, signals: list[signal.Signals], code: int, is_stubborn: bool
) -> None:
    write_program(tmp_path / ".venv" / "bin" / "deepspeed")
    (tmp_path / ".venv" / "bin" / "deepspeed").write_text(RANK.format(python=sys.executable, folder=tmp_path))
    if is_stubborn:
        (tmp_path / "stubborn").touch()
    with subprocess.Popen(
        ["bash", str(copy), "--config", str(tmp_path / "a file")], start_new_session=True
    ) as script:
        wait_for(tmp_path / "ready", script)
        for signum in signals:
            script.send_signal(signum)
            time.sleep(0.2)  # bash takes two of a kind for one
        assert script.wait(timeout=30) == code


def test_terminated_training_under_deepspeed_ends_with_a_checkpoint_and_code_75(tmp_path: Path) -> None:
    config = load_config(
        None, [*TINY, *text_settings(tmp_path), "run.steps=100000", "checkpoint.every=100000"]
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    variables = {
        "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}",
        "NPROC": "2",
        "DEEPSPEED_ARGS": f"--master_port {PORT}",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log").open("w") as log:
        command = ["bash", str(SCRIPT), "--config", str(tmp_path / "config.yaml")]
        script = subprocess.Popen(
            command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(tmp_path / "run" / "metrics.jsonl", script)
            script.send_signal(signal.SIGTERM)
            assert script.wait(timeout=100) == 75, (tmp_path / "log").read_text()
        finally:
            kill_session(script)
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    told = (tmp_path / "log").read_text()
    for place in ("stopped (rank 0 on ", "rank 1 stopped (on "):
        step = int(checkpoint.name.removeprefix("step_"))
        reason = f"a signal asked for it; step {step} is saved; the same command continues"
        assert f"{place}{socket.gethostname()}): {reason}" in told
    assert "Traceback" not in told


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """What it started and left behind: ranks that would train on when the test has failed."""
    for process in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process) == leader.pid:
                os.kill(process, signal.SIGKILL)
    leader.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not (path.exists()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
