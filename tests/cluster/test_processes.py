"""What a test of a cluster started ends with the test, however that ends."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.hosts import hosts
from tests.cluster.processes import kill_all, term_unwinds, with_variable
from tests.cluster.slurm import missing

REASON = missing("ip")


def test_a_process_and_what_it_started_are_killed(tmp_path: Path) -> None:
    script = "sleep 300 & setsid sleep 300 & wait"
    process = subprocess.Popen(["bash", "-c", script], env=os.environ | {"OF_A_TEST": str(tmp_path)})
    while len(with_variable("OF_A_TEST", str(tmp_path))) < 3:
        pass
    kill_all(lambda: with_variable("OF_A_TEST", str(tmp_path)))
    assert process.wait() == -signal.SIGKILL
    assert with_variable("OF_A_TEST", str(tmp_path)) == []


def test_a_process_of_another_variable_lives(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"], env=os.environ | {"OF_A_TEST": f"{tmp_path}1"}) as process:
        kill_all(lambda: with_variable("OF_A_TEST", str(tmp_path)))
        assert process.poll() is None
        process.kill()


def test_term_runs_the_finally_blocks() -> None:
    before, ended = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt), term_unwinds():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            ended.append("")
    assert ended and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.cluster
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_test_of_hosts_that_fails_leaves_no_process() -> None:
    with pytest.raises(ZeroDivisionError), hosts(1) as (host,):
        process = host.run("sleep", "300")
        while not host.processes():
            pass
        raise ZeroDivisionError
    assert process.wait(timeout=5) == -signal.SIGKILL
