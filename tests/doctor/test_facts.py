"""What a node says of itself, each with a fault planted."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any  # what nodes answer

import pytest

from diffmoe_scale.doctor import facts, reach
from diffmoe_scale.doctor.__main__ import head_of
from diffmoe_scale.doctor.facts import Facts, find_facts, required_packages
from diffmoe_scale.doctor.reach import listening
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a head that listens; its disks are quick, and nobody is waited for."""
    monkeypatch.setattr(facts, "DISK_BYTES", 2**20)
    monkeypatch.setattr(facts, "PATIENCE_S", 0)
    port = free_port()
    with listening(port):
        yield port


def ask(folder: Path, port: int) -> Facts:
    return find_facts(folder, nodes=1, head="127.0.0.1", port=port, root=ROOT)


def test_a_sound_node_has_no_problem(tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (1024, 4096))  # in force, and the most allowed
    found = ask(tmp_path, head)
    assert found.problems == [] and found.seen == [socket.gethostname()]
    assert [path.name for path in tmp_path.iterdir()] == [f"mark-{socket.gethostname()}"]
    assert found.free_gb == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.05)
    assert found.open_files == 1024


def test_nobody_is_waited_for_once_all_marks_are_there(
    tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "PATIENCE_S", 60)
    (tmp_path / "mark-other").touch()
    started = time.monotonic()
    found = find_facts(tmp_path, nodes=2, head="127.0.0.1", port=head, root=ROOT)
    assert time.monotonic() - started < 30 and found.seen == sorted(["other", socket.gethostname()])


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path, head: int) -> None:
    found = ask(tmp_path / "none", head)
    assert found.write_mb_s == 0 and found.seen == [] and found.free_gb == 0
    assert [re.sub(r" \(.*", "", problem) for problem in found.problems] == [
        f"{tmp_path / 'none'} cannot be written to"
    ]


def test_the_speed_of_a_folder_is_megabytes_a_second(
    tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: time.sleep(0.5))
    assert 0 < ask(tmp_path, head).write_mb_s < 2.1  # 1 MiB in at least half a second


def test_a_head_that_does_not_answer_is_a_problem(tmp_path: Path, head: int) -> None:
    port = free_port()
    found = ask(tmp_path, port)
    assert found.clock_offset_s is None
    assert found.problems[0].startswith(f"port {port} of 127.0.0.1 does not answer (")


def test_a_clock_that_goes_ahead_of_the_heads_is_so_by_as_much(
    tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way there takes as long as the way back: 0.4 s in all are no offset."""
    now = time.time

    def slow_head() -> float:
        time.sleep(0.2)
        read = now()
        time.sleep(0.2)
        return read

    monkeypatch.setattr(reach, "time", SimpleNamespace(time=slow_head))
    monkeypatch.setattr(facts, "time", SimpleNamespace(**vars(time) | {"time": lambda: now() + 3}))
    assert ask(tmp_path, head).clock_offset_s == pytest.approx(3, abs=0.15)


def test_a_package_that_is_not_there_is_left_out(tmp_path: Path, head: int) -> None:
    (tmp_path / "setup.py").write_text(
        'install_requires=["torch>=2", "no-such-package"], extras_require={"dev": ["x"]}'
    )
    assert required_packages(tmp_path) == ["torch", "no-such-package"]
    found = find_facts(tmp_path, nodes=1, head="127.0.0.1", port=head, root=tmp_path)
    assert list(found.packages) == ["torch"]


def test_a_tool_is_looked_for_on_path_and_beside_python(
    tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(tmp_path, head).missing_tools == ["g++"]
    (tmp_path / "g++").touch(0o755)
    assert ask(tmp_path, head).missing_tools == []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert ask(tmp_path, head).missing_tools == ["ninja"]


@pytest.mark.parametrize(
    ("script", "gpus", "problem"),
    [
        ("echo 'H100, 570.1'; echo; echo ' H100, 570.1'", ["H100, 570.1", "H100, 570.1"], None),
        ("echo 'driver mismatch' >&2; exit 9", [], "nvidia-smi failed: driver mismatch"),
        ("echo 'no devices'; exit 6", [], "nvidia-smi failed: no devices"),
        ("exec sleep 20", [], "nvidia-smi does not answer ("),
    ],
)
def test_what_nvidia_smi_says(
    tmp_path: Path,
    head: int,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    gpus: list[str],
    problem: str | None,
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(facts, "COMMAND_S", 0.5 if "sleep" in script else 30)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = ask(tmp_path, head)
    assert found.gpus == gpus
    assert [entry[: len(problem or "")] for entry in found.problems] == ([problem] if problem else [])


def test_the_port_is_free_again_after_the_answers() -> None:
    port = free_port()
    for _ in range(2):
        with listening(port):
            pass
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def answers(*commands: list[str]) -> tuple[list[Any], list[str]]:
    started = {f"host{number}": reach._start(command) for number, command in enumerate(commands)}
    return reach._answers(started)


def test_what_is_no_answer_is_said(tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ANSWER_S", 0)
    found, silent = answers(["sh", "-c", "echo motd; exec sleep 60"], ["sh", "-c", "exit 3"])
    assert found == []
    assert silent == ["host0: gave no answer (no answer in 0 s)", "host1: gave no answer (exit code 3)"]


def test_an_answer_among_other_lines_and_one_of_a_command_that_failed() -> None:
    entry = '{"host": "a", "problems": ["p"]}'
    found, silent = answers(
        ["sh", "-c", f"echo welcome; echo 'DOCTOR {entry}'; exit 0"],
        ["sh", "-c", f"echo 'DOCTOR {entry}'; echo 'srun: task 1 failed' >&2; exit 1"],
        ["sh", "-c", "exit 0"],
    )
    assert [node["problems"] for node in found] == [["p"], ["p"]]
    assert silent == ["host1: gave no answer (srun: task 1 failed)", "host2: gave no answer (exit code 0)"]


def test_hosts_run_the_command_in_the_folder_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "my folder; exit"
    root.mkdir()
    seen: list[subprocess.Popen[str]] = []

    def no_answers(started: dict[str, subprocess.Popen[str]]) -> tuple[list[Any], list[str]]:
        seen.extend(started.values())
        return [], []

    monkeypatch.setattr(reach, "_answers", no_answers)
    monkeypatch.setattr(reach, "SSH", ["sh", "-c", 'exec sh -c "$1"'])
    reach.Nodes(["host"], 1, root).ask(["pwd"])
    reach.Nodes(["host", "other"], 2, root).ask(["echo", "a b"], is_numbered=True)
    assert [process.communicate()[0] for process in seen] == [f"{root}\n", "a b 0\n", "a b 1\n"]


def test_nodes_have_the_names_of_the_host_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "SSH", ["sh", "-c", 'exec sh -c "$1"'])
    code = "import json; from diffmoe_scale.doctor import facts, reach\n"
    code += "print(reach.ANSWER + json.dumps(facts.node_name()))"
    hosts = reach.Nodes(["a", "b c"], 2, tmp_path)
    assert hosts.ask([sys.executable, "-c", code]) == (["a", "b c"], [])
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert facts.node_name() == socket.gethostname()


def test_this_machine_is_called_as_the_host_file_does(tmp_path: Path) -> None:
    assert reach.is_own("localhost") and reach.is_own("127.0.0.2")
    assert not reach.is_own("198.51.100.1") and not reach.is_own("no.such.host.invalid")
    assert head_of(reach.Nodes(["198.51.100.1", "127.0.0.2"], 2, tmp_path)) == "127.0.0.2"
    assert head_of(reach.Nodes(["198.51.100.1", "198.51.100.2"], 2, tmp_path)) == socket.gethostname()
    assert head_of(reach.Nodes(["127.0.0.2"], 1, tmp_path)) == "127.0.0.1"


def test_a_job_of_slurm_is_asked_with_one_task_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(reach, "_start", commands.append)
    monkeypatch.setattr(reach, "_answers", lambda started: ([], list(started)))
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    assert reach.slurm_nodes() == 0
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    job = reach.Nodes([], reach.slurm_nodes(), tmp_path)
    assert job.ask(["probe"]) == job.ask(["probe"], is_numbered=True) == ([], ["srun"])
    srun = ["srun", "--ntasks-per-node=1", "--nodes=3", "--kill-on-bad-exit=0", "probe"]
    assert commands == [srun, [*srun, reach.OF_STEP]]
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "three")
    with pytest.raises(reach.RunError, match="SLURM_JOB_NUM_NODES is 'three'; expected a number"):
        reach.slurm_nodes()
