"""docs/cluster.md: each job of the dependency chain waits for the one before it and reads what that one
writes; the messages of the failure table are what the code says."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.page import chain, messages
from tests.launch.scripts import ROOT, write_program

MESSAGES = {
    "rank 9 on node3 has a micro-batch of 7 images of ...; expected 8": (
        "diffmoe_scale/train/trainer.py",
        "rank {rank} on {host} has a micro-batch of {count} images of ",
        "; expected {shape.count}",
    ),
    "stopped (rank 0 on node1): another rank died or hung": (
        "diffmoe_scale/train/explain.py",
        "'rank 0 on'} {socket.gethostname()}",
        '"another rank died or hung;',
        '"stopped (%s): %s; %s (',
    ),
    "lost: rank 5 on node2": ("diffmoe_scale/train/explain.py", '"lost: %s;'),
    "checkpoint ... was not written": (
        "diffmoe_scale/checkpoint/store.py",
        "checkpoint {final} was not written: ",
    ),
    "run.directory ... is in use": ("diffmoe_scale/lock.py", "{setting} {path.parent} is in use: "),
    "alarm data": ("diffmoe_scale/train/alarms.py", "alarm %s: %s", '"data",'),
    "alarm straggler/data: rank 9 on node3": (
        "diffmoe_scale/train/alarms.py",
        'f"straggler/{phase}"',
        'f"rank {rank} on {self._hosts[rank]} ',
    ),
    "2 ranks did not meet at ADDRESS:PORT within N s": (
        "diffmoe_scale/parallel/context.py",
        "{ranks} did not meet at {address}:{port} within ",
    ),
    "port N is in use": ("diffmoe_scale/parallel/context.py", "port {port} is in use"),
    "TensorBoard failed (...); training goes on": (
        "diffmoe_scale/telemetry/trackers.py",
        '"TensorBoard"',
        "%s failed (%s: %s); training goes on",
    ),
    "checkpoint ... is damaged and not used: ...": (
        "diffmoe_scale/checkpoint/store.py",
        "checkpoint %s is damaged and not used: %s",
    ),
    "srun ended, but ... does not say that the run trained to its end": (
        "launch/slurm/pretrain.sbatch",
        "srun ended, but $directory/ended does not say that the run trained to its end",
    ),
}
"""The messages of the failure table in their order: the file that has each, and its words there."""


def submitted(folder: Path) -> list[list[str]]:
    """The words of each `sbatch` of the chain; the n-th job has the number 100 + n."""
    log = folder / "jobs"
    write_program(
        folder / "bin" / "sbatch",
        f'printf "%s\\t" "$@" >>{log} && echo >>{log}',
        f"echo $((100 + $(wc -l <{log})))",
    )
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", chain()], cwd=folder, env={"PATH": path}, check=True, capture_output=True)
    return [line.split("\t")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_each_job_waits_for_the_one_before_it(tmp_path: Path) -> None:
    first, *others = submitted(tmp_path)
    assert "--dependency" not in first
    assert [after(words, "--dependency") for words in others] == ["afterok:101", "afterok:102", "afterok:103"]


def test_each_job_reads_what_the_one_before_it_writes(tmp_path: Path) -> None:
    shards, cache, train, scores = submitted(tmp_path)
    assert after(cache, "--input") == after(shards, "--output") + "/*.tar"
    assert after(cache, "--array") == after(shards, "--array")
    features = after(cache, "--output").replace("{task}", "*")
    assert f"data.train=[{features}/*.tar]" in train
    assert after(train, "--config") == after(cache, "--config")
    assert after(scores, "--part") == "{part}"


def test_every_message_of_the_failure_table_is_looked_up() -> None:
    assert messages() == list(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_failure_table_is_one_of_the_code(message: str) -> None:
    path, *words = MESSAGES[message]
    source = (ROOT / path).read_text(encoding="utf-8")
    assert [part for part in words if part not in source] == []
