import subprocess
import sys
from pathlib import Path

import pytest

from diffmoe_scale.telemetry import stacks
from diffmoe_scale.telemetry.stacks import StackDump

HANGS = """
import sys, time
from pathlib import Path
from diffmoe_scale.telemetry.stacks import StackDump

def step_that_hangs(seconds):
    time.sleep(seconds)

with StackDump(Path(sys.argv[1]), wait_s=1) as stacks:
    for seconds in map(float, sys.argv[2:]):
        stacks.beat()
        step_that_hangs(seconds)
        stacks.beat()
"""


def run(path: Path, *seconds: float) -> None:
    subprocess.run([sys.executable, "-c", HANGS, str(path), *map(str, seconds)], check=True, timeout=240)


def test_a_step_that_hangs_leaves_its_stack_and_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "stacks" / "rank_0.txt", 0.3, 1.8, 0.3)
    text = (tmp_path / "stacks" / "rank_0.txt").read_text()
    assert text.count("step_that_hangs") == 1


def test_steps_in_time_leave_nothing(tmp_path: Path) -> None:
    run(tmp_path / "stacks" / "rank_0.txt", 0.6, 0.6, 0.6)
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_ranks_stay(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank_1.txt").write_text("stack")
    run(tmp_path / "stacks" / "rank_0.txt", 0.1)
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == ["rank_1.txt"]


def test_the_clock_runs_from_the_start_is_set_anew_now_and_then_and_stands_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told = [100.0], list[str]()
    monkeypatch.setattr(stacks.time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(
        stacks.faulthandler, "dump_traceback_later", lambda *_, file: told.append(f"set at {clock[-1]}")
    )
    monkeypatch.setattr(stacks.faulthandler, "cancel_dump_traceback_later", lambda: told.append("stopped"))
    with StackDump(tmp_path / "rank_0.txt", wait_s=50) as dump:
        for now in (101.0, 104.9, 105.0, 109.0, 111.0):
            clock.append(now)
            dump.beat()
    assert told == ["set at 100.0", "set at 105.0", "set at 111.0", "stopped"]


def test_nothing_is_made_where_it_is_switched_off_and_a_bad_place_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StackDump(tmp_path / "stacks" / "rank_0.txt", wait_s=0) as stacks:
        stacks.beat()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with StackDump(tmp_path / "file" / "rank_0.txt", wait_s=5) as stacks:
        stacks.beat()
    assert "cannot be written" in caplog.text
