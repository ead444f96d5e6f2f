"""launch/restart.sh around a program that fails."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.scripts import ROOT, run, write_program

RESTART = ROOT / "launch" / "restart.sh"


def program(folder: Path, *codes: int) -> Path:
    """Ends with these codes in turn, the last one from then on; writes a line to FOLDER/starts each time."""
    write_program(
        folder / "program",
        f"echo x >> {folder}/starts",
        f"set -- {' '.join(map(str, codes))}",
        f"n=$(wc -l < {folder}/starts)",
        'while [ "$n" -gt 1 ] && [ $# -gt 1 ]; do shift; n=$((n - 1)); done; exit $1',
    )
    return folder / "program"


@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [((1, 7, 0), 0, 3), ((1, 75), 75, 2), ((2,), 2, 1), ((130,), 130, 1), ((1,), 1, 4)],
)
def test_failures_are_started_again_and_ends_that_were_meant_are_not(
    tmp_path: Path, codes: tuple[int, ...], code: int, starts: int
) -> None:
    result = run(["bash", RESTART, program(tmp_path, *codes)], BACKOFF_S="0", RESTARTS="3")
    assert result.returncode == code, result.stderr
    assert (tmp_path / "starts").read_text().count("x") == starts
    assert ("3 restarts are used up" in result.stderr) == (starts == 4)


def test_every_restart_waits_longer_up_to_a_limit(tmp_path: Path) -> None:
    write_program(tmp_path / "bin" / "sleep", "exit 0")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    command = ["bash", RESTART, program(tmp_path, 1)]
    result = run(command, RESTARTS="4", BACKOFF_MAX_S="50", PATH=path)
    waits = [line.split()[-2] for line in result.stderr.splitlines() if " in " in line]
    assert waits == ["10", "20", "40", "50"]


def test_a_signal_is_passed_on_and_ends_the_restarts(tmp_path: Path) -> None:
    write_program(
        tmp_path / "program", f"trap 'exit 1' USR1; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    )
    with subprocess.Popen(["bash", str(RESTART), str(tmp_path / "program")]) as script:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(timeout=60) == 1
