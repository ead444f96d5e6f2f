"""launch/pretrain_t2i.sh by bash: what it gives to deepspeed, checks before and answers after."""

import shutil
from pathlib import Path

import pytest

from tests.launch.scripts import run, write_program


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
