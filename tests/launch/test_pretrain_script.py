"""launch/pretrain_t2i.sh by python, bash and deepspeed; the host list."""

import os
import sys
import warnings
from pathlib import Path

import pytest

from tests.launch.scripts import DEEPSPEED, PORT, ROOT, SBATCH, SCRIPT, run


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


def test_host_list_is_one_that_deepspeed_reads() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(ROOT / "launch" / "hostfile.example"))) == {"node1": 8, "node2": 8}
