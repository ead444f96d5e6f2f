"""launch/slurm/pretrain.sbatch, with SLURM's programs replaced."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch.scripts import ROOT, SBATCH, run, write_program


def run_sbatch(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The template as SLURM would run it on the first of two nodes, with a srun that prints what it was
    given."""
    write_program(
        tmp_path / "bin" / "scontrol", '[ "$1" = show ] && printf "node7\\nnode9\\n" || echo "scontrol $@"'
    )
    write_program(tmp_path / "bin" / "squeue", 'echo "${JOB_STATE:-RUNNING}"')
    interfaces = "${NCCL_SOCKET_IFNAME:-},${GLOO_SOCKET_IFNAME:-}"
    told = f'echo "$MASTER_ADDR:$MASTER_PORT threads=$OMP_NUM_THREADS interfaces={interfaces}"'
    # The last word is the start's number; the main rank writes it after training to the end.
    ended = f'for last in "$@"; do :; done; [ "${{IS_CUT_OFF:-}}" ] || echo "$last" >{tmp_path}/ended'
    write_program(
        tmp_path / "bin" / "srun", told, 'printf "%s|" "$@"', "echo", ended, 'exit "${SRUN_CODE:-0}"'
    )
    write_program(tmp_path / ".venv" / "bin" / "python", f"echo {tmp_path}", 'exit "${CHECK_CODE:-0}"')
    job = {
        "SLURM_JOB_ID": "40007",
        "SLURM_JOB_NODELIST": "node[7,9]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    return run(
        ["bash", SBATCH, *arguments],
        cwd=ROOT,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        **(job | variables),
    )


def test_slurm_template_starts_one_pretrain_a_task(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "--config", "a file", "run.steps=3")
    assert result.returncode == 0, result.stderr
    started = result.stdout.splitlines()[-1]
    assert started == (
        "--cpus-per-task=6|--kill-on-bad-exit=1|python|-m|diffmoe_scale.pretrain|"
        "--config|a file|run.steps=3|--start-id|40007-0|"
    )


def test_slurm_template_answers_0_only_with_the_word_of_the_main_rank(tmp_path: Path) -> None:
    assert run_sbatch(tmp_path, "--config", "x").returncode == 0
    result = run_sbatch(tmp_path, "--config", "x", SLURM_RESTART_COUNT="1", IS_CUT_OFF="yes")
    assert result.returncode == 1 and "does not say that the run trained to its end" in result.stderr
    result = run_sbatch(
        tmp_path, "--config", "x", IS_CUT_OFF="yes", SLURM_JOB_ID="40008", RESTART_AFTER_S="0"
    )
    assert result.stdout.splitlines()[-1] == "scontrol requeue 40008"


def test_slurm_template_answers_a_wrong_setting_before_the_tasks_start(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "--config", "x", CHECK_CODE="2")
    assert result.returncode == 2 and "|" not in result.stdout


def test_slurm_template_meets_at_the_first_node_and_a_port_of_the_job(tmp_path: Path) -> None:
    assert "node7:10007 threads=6 interfaces=,\n" in run_sbatch(tmp_path, "--config", "x").stdout


def test_slurm_template_follows_its_variables(tmp_path: Path) -> None:
    result = run_sbatch(
        tmp_path,
        "--config",
        "x",
        MASTER_ADDR="10.0.0.1",
        MASTER_PORT="5000",
        NETWORK="ib0",
        THREADS="3",
        SRUN_ARGS="--label --mpi=none",
    )
    assert "10.0.0.1:5000 threads=3 interfaces=ib0,ib0\n" in result.stdout
    assert "--kill-on-bad-exit=1|--label|--mpi=none|python|" in result.stdout


def test_slurm_template_without_config_ends_before_anything_starts(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "run.steps=3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no --config among the arguments")


def test_slurm_template_names_a_missing_virtual_environment(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "--config", "x", VENV="/nowhere")
    assert result.returncode == 2
    assert "/nowhere/bin/python" in result.stderr


def test_slurm_template_puts_a_failed_job_back_into_the_queue(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "--config", "x", SRUN_CODE="137", RESTART_AFTER_S="0")
    assert result.stdout.splitlines()[-1] == "scontrol requeue 40007"


def test_slurm_template_puts_a_job_that_a_signal_ended_back_however_often(tmp_path: Path) -> None:
    result = run_sbatch(tmp_path, "--config", "x", SRUN_CODE="75", SLURM_RESTART_COUNT="99")
    assert result.stdout.splitlines()[-1] == "scontrol requeue 40007"


@pytest.mark.parametrize(
    "variables",
    [
        {"RESTART_AFTER_S": "600"},
        {"SLURM_RESTART_COUNT": "10"},
        {"JOB_STATE": "COMPLETING"},
        {"SRUN_CODE": "0"},
        {"JOB_STATE": "COMPLETING", "SRUN_CODE": "75"},
    ],
    ids=["failed at once", "failed too often", "cancelled", "done", "cancelled in good order"],
)
def test_slurm_template_lets_the_job_end_when_a_restart_makes_no_sense(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    result = run_sbatch(
        tmp_path, "--config", "x", **({"SRUN_CODE": "137", "RESTART_AFTER_S": "0"} | variables)
    )
    assert "requeue" not in result.stdout
    assert result.returncode == int(variables.get("SRUN_CODE", "137"))
