"""launch/doctor.sh on a real SLURM of two nodes, of which the second has one fault after another."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm, missing, slurm, stop_daemon
from tests.launch.scripts import ROOT, write_program
from tests.ports import free_port

REASON = missing("slurmctld", "slurmd", "salloc", "munged", "unshare", "gcc")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=REASON)]
PORT = free_port()
SOURCE = Path(__file__).with_name("faults_of_a_node.c")
FAULTS = {
    "export PYTHONPATH={folder}/packages:{root}": "n2: numpy: 1.0.0, the others ",
    "export LD_PRELOAD={folder}/faults.so\nexport NODE_CLOCK_AHEAD=1": "n2: its clock is +60.0 s from",
    "export LD_PRELOAD={folder}/faults.so\nexport NODE_SLOW_DISK=1": "n2: writes ",
    f"export LD_PRELOAD={{folder}}/faults.so\nexport NODE_BLOCKED_PORT={PORT}": f"n2: port {PORT} of ",
    "export PATH={folder}/programs": "n2: has no g++",
}
"""What n2's processes get in their environment, and how the only finding begins."""


def ask(cluster: Slurm, shared: Path, *options: str) -> list[str]:
    words = ["bash", "launch/doctor.sh", "--shared", str(shared), "--port", str(PORT), *options]
    answer = subprocess.run(
        ["salloc", "-Q", "-N", "2", *words],
        cwd=ROOT,
        env=cluster.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "2 of 2 nodes answered" in answer.stderr, answer.stderr
    is_measured = "between 2 processes: all-reduce " in answer.stderr
    assert is_measured != ("--no-bandwidth" in options), answer.stderr
    return answer.stdout.splitlines()


def test_the_bad_node_is_named_for_each_kind_of_fault(tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    (record := tmp_path / "packages" / "numpy-1.0.0.dist-info").mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.0\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "faults.so", SOURCE, "-ldl"], check=True)
    (tmp_path / "programs").mkdir()
    for name in ("bash", "sh", "env"):
        (tmp_path / "programs" / name).symlink_to(str(shutil.which(name)))
    write_program(tmp_path / "prolog", f'[ "$SLURMD_NODENAME" != n2 ] || cat {tmp_path}/variables')
    variables = tmp_path / "variables"
    variables.touch()
    with slurm(tmp_path / "slurm", settings=f"TaskProlog={tmp_path}/prolog") as cluster:
        usual = ask(cluster, shared)
        for fault, beginning in FAULTS.items():
            variables.write_text(fault.format(folder=tmp_path, root=ROOT) + "\n")
            (found,) = [line for line in ask(cluster, shared, "--no-bandwidth") if line not in usual]
            assert found.startswith(beginning)
        variables.write_text("")
        stop_daemon(tmp_path / "slurm" / "n2.pid")
        cluster.run("unshare", "-m", "sh", "-c", f"mount -t tmpfs none {shared} && exec slurmd -N n2")
        cluster.wait_for_nodes(2)
        (found,) = [line for line in ask(cluster, shared, "--no-bandwidth") if line not in usual]
        assert found.startswith(f"n2: {shared}/") and "cannot be written to" in found
    assert os.listdir(shared) == []
