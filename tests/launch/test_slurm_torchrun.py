"""launch/slurm/pretrain_torchrun.sbatch and array.sbatch, with SLURM's programs replaced."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.scripts import ROOT, run, write_program

FOLDER = ROOT / "launch" / "slurm"


def job(tmp_path: Path, **variables: str) -> dict[str, str]:
    """The programs of SLURM: srun answers `--check` with a run directory, and else prints what it was given,
    trains for TRAIN_S, or until RUN/stop is there, and writes RUN/ended unless it was stopped."""
    (tmp_path / "run").mkdir(exist_ok=True)
    write_program(tmp_path / "bin" / "scontrol", '[ "$1" = show ] && echo node7 || echo "scontrol $@"')
    write_program(tmp_path / "bin" / "squeue", 'echo "${JOB_STATE:-RUNNING}"')
    write_program(
        tmp_path / "bin" / "srun",
        f'case "$*" in *--check*) echo {tmp_path}/run; exit "${{CHECK_CODE:-0}}" ;; esac',
        'printf "%s|" "$@"; echo',
        f'for i in $(seq "${{TRAIN_S:-0}}"); do [ -e {tmp_path}/run/stop ] && exit 1; sleep 1; done',
        'for last in "$@"; do :; done',
        f'[ "${{SRUN_CODE:-0}}" = 0 ] && echo "$last" >{tmp_path}/run/ended',
        f'[ -z "$ENDED" ] || echo "$last $ENDED" >{tmp_path}/run/ended',
        'exit "${SRUN_CODE:-0}"',
    )
    write_program(tmp_path / ".venv" / "bin" / "python", 'printf "%s|" "$RANK/$WORLD_SIZE" "$@"')
    return {
        "SLURM_JOB_ID": "40007",
        "SLURM_JOB_NODELIST": "node[7,9]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
        "PROJECT": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        **variables,
    }


def run_torchrun(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", FOLDER / "pretrain_torchrun.sbatch", "--config", "a file", "run.steps=3"]
    return run(command, cwd=ROOT, **job(tmp_path, **variables))


STARTED = (
    'bash|-c|trap "" USR1 USR2; exec torchrun "$@"|torchrun|'
    "--nnodes|2|--nproc-per-node|8|--rdzv-id|40007-0|--rdzv-backend|c10d|"
    "--rdzv-endpoint|node7:10007|-m|diffmoe_scale.pretrain|--config|a file|run.steps=3|--start-id|40007-0|"
)


def test_one_torchrun_a_node_with_a_process_a_gpu(tmp_path: Path) -> None:
    result = run_torchrun(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"--cpus-per-task=64|--kill-on-bad-exit=1|{STARTED}"


def test_without_gpus_there_is_a_process_a_node(tmp_path: Path) -> None:
    assert "--nproc-per-node|1|" in run_torchrun(tmp_path, SLURM_GPUS_ON_NODE="").stdout


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"CONTAINER": "registry/image:1", "MOUNTS": "/data:/data"},
            "--container-image|registry/image:1|--container-workdir|{0}|"
            "--container-mounts|{0}:{0},/data:/data|bash|-c|",
        ),
        (
            {"APPTAINER": "/images/x.sif"},
            "apptainer|exec|--nv|--pwd|{0}|--bind|{0}:{0}|/images/x.sif|bash|-c|",
        ),
    ],
)
def test_processes_run_in_the_container_that_is_named(
    tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    result = run_torchrun(tmp_path, **variables)
    assert result.returncode == 0 and words.format(tmp_path) in result.stdout, result.stderr


def test_a_signal_to_the_script_becomes_the_file_and_the_job_goes_back(tmp_path: Path) -> None:
    command = ["bash", str(FOLDER / "pretrain_torchrun.sbatch"), "--config", "x"]
    variables = os.environ | job(tmp_path, TRAIN_S="60")
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "torchrun|" in line:
                time.sleep(0.5)
                process.send_signal(signal.SIGUSR1)
                break
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 1
    assert (tmp_path / "run" / "stop").exists() and rest.splitlines()[-1] == "scontrol requeue 40007"


def test_a_run_that_failed_goes_back_only_after_a_while(tmp_path: Path) -> None:
    failed = run_torchrun(tmp_path, SRUN_CODE="1")
    assert failed.returncode == 1 and "requeue" not in failed.stdout
    failed = run_torchrun(tmp_path, SRUN_CODE="1", RESTART_AFTER_S="0")
    assert failed.stdout.splitlines()[-1] == "scontrol requeue 40007"


def test_a_run_that_the_file_stopped_goes_back_at_once(tmp_path: Path) -> None:
    stopped = run_torchrun(tmp_path, SRUN_CODE="1", ENDED="stopped")
    assert stopped.returncode == 1 and stopped.stdout.splitlines()[-1] == "scontrol requeue 40007"


def test_a_file_of_an_earlier_stop_does_not_stop_this_start(tmp_path: Path) -> None:
    variables = job(tmp_path, TRAIN_S="1")
    (tmp_path / "run" / "stop").touch()
    result = run(["bash", FOLDER / "pretrain_torchrun.sbatch", "--config", "x"], cwd=ROOT, **variables)
    assert result.returncode == 0, result.stderr


def test_a_wrong_setting_is_answered_before_the_processes_start(tmp_path: Path) -> None:
    result = run_torchrun(tmp_path, CHECK_CODE="2")
    assert result.returncode == 2 and "torchrun" not in result.stdout


def run_array(tmp_path: Path, *words: str, task: int, **array: str) -> subprocess.CompletedProcess[str]:
    numbers = {"MIN": "0", "MAX": "3", "COUNT": "4", "STEP": "1"} | array
    variables = {f"SLURM_ARRAY_TASK_{name}": value for name, value in numbers.items()}
    return run(
        ["bash", FOLDER / "array.sbatch", *words],
        cwd=ROOT,
        **job(tmp_path, SLURM_ARRAY_TASK_ID=str(task), **variables),
    )


def test_every_job_of_an_array_has_its_part(tmp_path: Path) -> None:
    answers = [run_array(tmp_path, "tools/x.py", "--a", "b c", task=task).stdout for task in range(4)]
    assert [answer.splitlines()[-1] for answer in answers] == [
        f"{task}/4|tools/x.py|--a|b c|" for task in range(4)
    ]
    named = run_array(
        tmp_path, "tools/x.py", "--part", "{part}", task=7, MIN="5", MAX="9", COUNT="3", STEP="2"
    )
    assert named.stdout.splitlines()[-1] == "/|tools/x.py|--part|2/3|"


def test_jobs_of_an_array_do_not_meet_at_a_port_of_the_environment(tmp_path: Path) -> None:
    variables = job(tmp_path, SLURM_ARRAY_TASK_ID="1", MASTER_PORT="29500")
    write_program(tmp_path / ".venv" / "bin" / "python", 'echo "port ${MASTER_PORT-none}"')
    variables |= {f"SLURM_ARRAY_TASK_{name}": value for name, value in (("MIN", "0"), ("MAX", "1"))}
    variables |= {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": "1"}
    answer = run(["bash", FOLDER / "array.sbatch", "tools/x.py", "--part", "{part}"], cwd=ROOT, **variables)
    assert answer.stdout.splitlines()[-1] == "port none", answer.stderr


def test_a_job_of_an_array_can_have_a_folder_of_its_own(tmp_path: Path) -> None:
    """And is no part of a whole then."""
    numbers = {"MIN": "4", "MAX": "7"}
    answer = run_array(tmp_path, "tools/x.py", "--input", "raw/{task}/*.tar", task=6, **numbers).stdout
    assert answer.splitlines()[-1] == "/|tools/x.py|--input|raw/6/*.tar|"


def test_arrays_that_would_leave_parts_out_are_refused(tmp_path: Path) -> None:
    result = run_array(tmp_path, "tools/x.py", task=2, MAX="2", COUNT="2")
    assert result.returncode == 2 and "the array has gaps" in result.stderr
    assert run_array(tmp_path, task=0).returncode == 2
    result = run(["bash", FOLDER / "array.sbatch", "tools/x.py"], cwd=ROOT, **job(tmp_path))
    assert result.returncode == 2 and "this is no job array" in result.stderr
