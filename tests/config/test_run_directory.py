import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmoe_scale.config.run_directory import RunDirectory, hold_lock, run_of_checkpoint, run_of_config
from diffmoe_scale.pretrain import read_config

HOLD = (
    "import sys, time; from pathlib import Path; from diffmoe_scale.config.run_directory import *\n"
    "lock = hold_lock(RunDirectory(Path(sys.argv[1]))); print('held', flush=True); time.sleep(60)"
)


def test_second_start_is_refused_and_told_who_holds_the_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    lock = hold_lock(directory)
    assert lock is not None
    with pytest.raises(ValueError, match=rf"run is in use: process {os.getpid()} on .* trains there"):
        hold_lock(directory)
    lock.close()
    again = hold_lock(directory)
    assert again is not None
    again.close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on "):
        hold_lock(directory)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            lock = hold_lock(directory)
            break
        except ValueError:
            time.sleep(0.05)
    assert lock is not None
    lock.close()


def test_config_of_a_run_starts_that_run_from_whatever_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "a" / "my # run")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("run: {directory: 'my # run'}\n", encoding="utf-8")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert read_config(run.config, []).run.directory == str(run.path)
    assert read_config(run.config, ["run.directory=other"]).run.directory == "other"
    monkeypatch.chdir(tmp_path / "a")
    assert read_config(Path("my # run/config.yaml"), []).run.directory == "my # run"
    assert run_of_config(tmp_path / "a" / "config.yaml") is None


def test_a_run_that_lies_in_a_folder_named_checkpoints_is_no_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "demo"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    assert run_of_checkpoint(run) is None and run_of_checkpoint(run / "checkpoints") is None
    # One that was removed is still of the run.
    assert run_of_checkpoint(run / "checkpoints" / "step_00000010") == RunDirectory(run)
