"""launch/slurm/pretrain.sbatch on a real SLURM of two nodes."""

import sys
import time
from pathlib import Path

import pytest

from diffmoe_scale.config.load import dump_config
from tests.cluster.slurm import missing, slurm
from tests.launch.scripts import ROOT, SBATCH
from tests.ports import free_port
from tests.train.runs import text_settings, tiny_config
from tests.train.whole_runs import read_lines, train_runs

REASON = missing("slurmctld", "slurmd", "sbatch", "munged")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=REASON)]
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


def test_a_job_that_a_signal_ends_is_requeued_and_ends_as_an_undisturbed_run(tmp_path: Path) -> None:
    settings = [
        *text_settings(tmp_path),
        "run.steps=40",
        "checkpoint.every=1000",
        "parallel.expert_parallel=2",
    ]
    config = tiny_config(settings)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    variables = {
        "PROJECT": str(ROOT),
        "VENV": str(Path(sys.executable).parents[1]),
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    metrics, output = tmp_path / "run" / "metrics.jsonl", tmp_path / "job.log"
    with slurm(tmp_path / "slurm") as cluster:
        job = cluster.run(
            *("sbatch", "--parsable", *OPTIONS, f"--output={output}", str(SBATCH)),
            *("--config", str(tmp_path / "config.yaml")),
            **variables,
        )
        give_up = time.monotonic() + 200
        while not (metrics.is_file() and metrics.stat().st_size):
            assert time.monotonic() < give_up and cluster.state(job) != "FAILED", output.read_text()
            time.sleep(0.05)
        cluster.run("scancel", "--signal=USR1", job)
        assert cluster.wait(job) == "COMPLETED", output.read_text()
    printed = output.read_text()
    assert "a signal asked for it; step" in printed and "back into the queue" in printed
    assert f"job {job}, restart 1: 2 tasks on n[1-2]" in printed
    train_runs((2, 2), [*settings, f"run.directory={tmp_path / 'whole'}"])
    assert read_lines(tmp_path / "run") == read_lines(tmp_path / "whole")
