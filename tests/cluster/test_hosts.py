"""A launch by host file over two hosts with an address each."""

import os
import sys
from pathlib import Path

import pytest

from diffmoe_scale.config.load import dump_config
from tests.cluster.hosts import hosts, ssh_between
from tests.cluster.slurm import missing
from tests.launch.scripts import DEEPSPEED, ROOT, SCRIPT
from tests.train.runs import text_settings, tiny_config
from tests.train.whole_runs import read_lines, train_runs

REASON = missing("ip", "ssh", "ssh-keygen", "sshd", "pdsh", "unshare")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=REASON)]


def test_experts_over_two_hosts_learn_what_they_learn_on_one(tmp_path: Path) -> None:
    settings = [*text_settings(tmp_path), "run.steps=20", "parallel.expert_parallel=2"]
    (tmp_path / "config.yaml").write_text(dump_config(tiny_config(settings)))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # What deepspeed hands on to the other hosts.
    (tmp_path / ".deepspeed_env").write_text(
        f"PATH={path}\nPYTHONPATH={ROOT}\nGLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n"
    )
    with hosts(2) as (first, second), ssh_between([first, second], tmp_path / "ssh") as hostfile:
        command = f"{DEEPSPEED} --hostfile {hostfile} --master_addr {first.address} {SCRIPT} --config"
        words = f"hostname {first.name} && cd {tmp_path} && exec {command} {tmp_path / 'config.yaml'}"
        launch = first.run("unshare", "--uts", "sh", "-c", words, PATH=path, PDSH_RCMD_TYPE="ssh")
        printed = launch.communicate(timeout=250)[0]
    assert launch.returncode == 0, printed
    assert "host2: " in printed and "2 ranks, expert parallel 2" in printed
    train_runs((2, 2), [*settings, f"run.directory={tmp_path / 'whole'}"])
    assert read_lines(tmp_path / "run") == read_lines(tmp_path / "whole")
