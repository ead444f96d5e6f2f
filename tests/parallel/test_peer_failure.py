"""How a rank ends when another one dies or hangs in the middle of training."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from diffmoe_scale.parallel import peers
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 15
CONFIG = """
run: {{directory: {folder}/run, steps: 100000, global_batch: 4, micro_batch: 2}}
data: {{train: ["{folder}/scenes/train-*.tar"]}}
text: {{vocabulary: 300, max_tokens: 16, width: 32, depth: 1}}
model: {{image_size: 32, patch_size: 8, depth: 2, width: 32, heads: 2}}
moe: {{num_experts: 2, pool: rank}}
parallel: {{expert_parallel: 2, timeout_s: {timeout_s}}}
checkpoint: {{every: 100000}}
telemetry: {{tensorboard: false, log_every: 1}}
"""


@contextmanager
def training_pair(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks that have taken their first steps."""
    scenes = [
        "tools/make_scenes.py",
        "--output",
        str(folder / "scenes"),
        "--train",
        "64",
        "--validation",
        "8",
    ]
    subprocess.run([sys.executable, *scenes], cwd=ROOT, check=True, capture_output=True)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, timeout_s=TIMEOUT_S))
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    ranks = []
    for rank in ("0", "1"):
        command = [sys.executable, "-m", "diffmoe_scale.pretrain", "--config", str(folder / "config.yaml")]
        with (folder / f"rank{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )
    try:
        metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.is_file() and metrics.stat().st_size):
            assert all(process.poll() is None for process in ranks) and time.monotonic() < deadline, (
                folder / "rank0.log"
            ).read_text()
            time.sleep(0.1)
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("survivor", "death", "limit_s"),
    [
        pytest.param(0, signal.SIGKILL, 2 * TIMEOUT_S, id="killed, main rank survives"),
        pytest.param(1, signal.SIGKILL, 2 * TIMEOUT_S, id="killed, other rank survives"),
        # A stopped process keeps its connections open: only the time-out ends the wait.
        pytest.param(0, signal.SIGSTOP, 3 * TIMEOUT_S, id="hung", marks=pytest.mark.slow),
    ],
)
def test_survivor_says_that_another_rank_failed_and_which_and_exits_with_1(
    tmp_path: Path, survivor: int, death: signal.Signals, limit_s: float
) -> None:
    with training_pair(tmp_path) as ranks:
        ranks[1 - survivor].send_signal(death)
        code = ranks[survivor].wait(timeout=limit_s)
        printed = (tmp_path / f"rank{survivor}.log").read_text()
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 1, printed
    assert len(errors) == 2, printed
    place = f"rank 1 stopped (on {socket.gethostname()}" if survivor else "stopped (rank 0 on "
    assert place in errors[0]
    assert (
        "): another rank died or hung; look for the first error in the ranks' "
        "output; the same command continues" in errors[0]
    )
    host = "127.0.0.1" if survivor == 1 else socket.gethostname()
    assert f"lost: rank {1 - survivor} on {host}; " in errors[1]
    assert "Traceback" not in printed


class SilentStore:
    """That of a main rank whose host is gone: nothing refuses the connection."""

    def set(self, *_: str) -> None:
        pass

    def check(self, _: list[str]) -> bool:
        time.sleep(3600)
        return False


def test_a_store_that_never_answers_is_the_main_rank_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PATIENCE_S", 0.1), ("STORE_S", 0.1)):
        monkeypatch.setattr(peers, name, value)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", SilentStore)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert peers.name_lost_ranks() == "rank 0 on node1"
