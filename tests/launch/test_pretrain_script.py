"""The launchers: launch/pretrain_t2i.sh in each of its forms, the SLURM template, the host list."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.config.load import dump_config, load_config
from tests.train.runs import TINY, text_settings

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
        timeout=120,
    )


def write_program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script in a project of its own, with a python and a config beside it."""
    write_program(tmp_path / ".venv" / "bin" / "python", f'PYTHONPATH={ROOT} exec {sys.executable} "$@"')
    (tmp_path / "a.tar").touch()
    config = f"run: {{directory: {tmp_path / 'run'}}}\ndata: {{train: [{tmp_path / 'a.tar'}]}}\n"
    (tmp_path / "a file").write_text(config, encoding="utf-8")
    (tmp_path / "launch").mkdir()
    return Path(shutil.copy(SCRIPT, tmp_path / "launch"))


@pytest.mark.parametrize("path", [SCRIPT, SBATCH], ids=lambda path: path.name)
def test_bash_finds_no_syntax_error(path: Path) -> None:
    result = run(["bash", "-n", path])
    assert (result.returncode, result.stderr) == (0, "")


def test_python_compiles_the_script_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(SCRIPT.read_text(), str(SCRIPT), "exec")


def test_script_can_be_run_by_its_name() -> None:
    assert os.access(SCRIPT, os.X_OK)


def test_help_through_python_lists_the_settings() -> None:
    result = run([sys.executable, SCRIPT, "--help"])
    assert (result.returncode, result.stderr) == (0, "")
    assert "run.steps=" in result.stdout


def test_help_through_bash_and_deepspeed_lists_the_settings() -> None:
    result = run(
        ["bash", SCRIPT, "--help"],
        PATH=f"{DEEPSPEED.parent}:{os.environ['PATH']}",
        DEEPSPEED_ARGS=f"--master_port {PORT}",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("run.steps=") == 1


def test_wrong_setting_through_deepspeed_is_one_error_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {step: 3}\n")
    result = run(
        [DEEPSPEED, "--num_gpus", 1, "--master_port", PORT, SCRIPT, "--config", "config.yaml"], cwd=tmp_path
    )
    assert result.returncode == 2, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error:")] == [
        "error: run.step is no setting; did you mean run.steps?"
    ]
    assert "Traceback" not in result.stderr


def test_python_takes_the_package_beside_the_script(copy: Path, tmp_path: Path) -> None:
    package = tmp_path / "diffmoe_scale"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "pretrain.py").write_text(
        "import sys\n\ndef main():\n    print(__file__)\n    return 7\n\n"
        "def leave(code):\n    sys.exit(code)\n"
    )
    (elsewhere := tmp_path / "elsewhere").mkdir()
    result = run([sys.executable, copy], cwd=elsewhere)
    assert (result.returncode, result.stdout.strip()) == (7, str(package / "pretrain.py"))


def test_bash_passes_number_of_processes_options_and_arguments_to_the_projects_deepspeed(
    copy: Path, tmp_path: Path
) -> None:
    write_program(tmp_path / ".venv" / "bin" / "deepspeed", 'printf "%s|" "$LOCAL_SIZE" "$@"')
    result = run([copy, "--config", tmp_path / "a file"], NPROC="3", DEEPSPEED_ARGS="--master_port 5")
    told = f"3|--master_port|5|--num_gpus|3|{copy}|--config|{tmp_path / 'a file'}|--start-id|"
    assert result.stdout.startswith(told), result.stderr


def test_bash_leaves_the_number_of_processes_to_deepspeed(copy: Path, tmp_path: Path) -> None:
    write_program(tmp_path / ".venv" / "bin" / "deepspeed", 'printf "%s|" "$LOCAL_SIZE" "$@"')
    told = f"1|{copy}|--config|{tmp_path / 'a file'}|--start-id|"
    assert run([copy, "--config", tmp_path / "a file"]).stdout.startswith(told)


def test_bash_answers_0_only_with_the_word_of_the_main_rank(copy: Path, tmp_path: Path) -> None:
    command = [copy, "--config", tmp_path / "a file"]
    deepspeed = tmp_path / ".venv" / "bin" / "deepspeed"
    write_program(deepspeed, "exit 0")
    result = run(command)
    assert result.returncode == 1 and "did not say that it trained to its end" in result.stderr
    write_program(
        deepspeed,
        f'for last in "$@"; do :; done; mkdir -p {tmp_path}/run; echo "$last" > {tmp_path}/run/ended',
    )
    assert run(command).returncode == 0
    write_program(deepspeed, "exit 0")  # the word of the start before does not count
    assert run(command).returncode == 1
    write_program(deepspeed, "exit 7")
    assert run(command).returncode == 7


@pytest.mark.parametrize("devices", ["", "-1", "none", "0,,1"])
def test_bash_refuses_variables_that_hide_the_gpus_of_the_machine(
    copy: Path, tmp_path: Path, devices: str
) -> None:
    bin = tmp_path / ".venv" / "bin"
    write_program(bin / "deepspeed", 'echo "devices ${CUDA_VISIBLE_DEVICES-unset}"')
    write_program(bin / "nvidia-smi", "exit 9")
    command = [copy, "--config", tmp_path / "a file"]
    assert run(command, CUDA_VISIBLE_DEVICES=devices).stdout == "devices unset\n"
    write_program(bin / "nvidia-smi", "echo GPU 0")
    result = run(command, CUDA_VISIBLE_DEVICES=devices)
    assert result.returncode == 2 and f"CUDA_VISIBLE_DEVICES is '{devices}'" in result.stderr
    assert run(command, CUDA_VISIBLE_DEVICES="0,1").stdout == "devices 0,1\n"


def test_bash_answers_a_wrong_setting_before_it_starts_the_launcher(copy: Path, tmp_path: Path) -> None:
    write_program(tmp_path / ".venv" / "bin" / "deepspeed", "echo started")
    result = run([copy, "--config", tmp_path / "a file", "run.step=3"])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: run.step is no setting; did you mean run.steps?\n"


def test_bash_says_what_to_do_when_there_is_no_deepspeed(copy: Path, tmp_path: Path) -> None:
    (programs := tmp_path / "bin").mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    result = run([programs / "bash", copy, "--config", "x"], PATH=str(programs))
    assert result.returncode == 1
    assert "run 'make setup'" in result.stderr


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
        ([signal.SIGINT], 130, False),
        ([signal.SIGINT, signal.SIGINT], 137, True),
    ],
    ids=["SIGTERM", "SIGUSR2", "SIGINT", "SIGINT twice"],
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
        with subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log) as script:
            wait_for(tmp_path / "run" / "metrics.jsonl", script)
            script.send_signal(signal.SIGTERM)
            assert script.wait(timeout=100) == 75, (tmp_path / "log").read_text()
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    told = (tmp_path / "log").read_text()
    for rank in (0, 1):
        step = int(checkpoint.name.removeprefix("step_"))
        reason = f"a signal asked for it; step {step} is saved; the same command continues"
        assert f"stopped (rank {rank}): {reason}" in told
    assert "Traceback" not in told


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not (path.exists()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def run_sbatch(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The template as SLURM would run it on the first of two nodes, with a srun that prints what it was
    given."""
    write_program(
        tmp_path / "bin" / "scontrol", '[ "$1" = show ] && printf "node7\\nnode9\\n" || echo "scontrol $@"'
    )
    write_program(tmp_path / "bin" / "squeue", 'echo "${JOB_STATE:-RUNNING}"')
    told = 'echo "$MASTER_ADDR:$MASTER_PORT threads=$OMP_NUM_THREADS interface=${NCCL_SOCKET_IFNAME:-}"'
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
    assert "node7:10007 threads=6 interface=\n" in run_sbatch(tmp_path, "--config", "x").stdout


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
    assert "10.0.0.1:5000 threads=3 interface=ib0\n" in result.stdout
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


def test_host_list_is_one_that_deepspeed_reads() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(ROOT / "launch" / "hostfile.example"))) == {"node1": 8, "node2": 8}
