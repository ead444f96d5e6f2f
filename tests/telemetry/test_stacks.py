import subprocess
import sys
from pathlib import Path

import pytest

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
    subprocess.run([sys.executable, "-c", HANGS, str(path), *map(str, seconds)], check=True, timeout=60)


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
