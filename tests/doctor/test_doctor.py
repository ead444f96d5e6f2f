"""The doctor on real processes: here, in a broken environment, and over a fake ssh that plants faults."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmoe_scale.doctor.__main__ import main
from diffmoe_scale.doctor.reach import Nodes, listening, read_hosts
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
FAKE_SSH = """#!{python}
# ssh -o X -o Y HOST COMMAND, with the faults of a host planted.
import json, os, subprocess, sys
host, command = sys.argv[-2:]
if host == "dead":
    sys.exit("ssh: connect to host dead port 22: Connection refused")
answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
for line in answer.stdout.splitlines():
    facts = json.loads(line.removeprefix("DOCTOR "))
    facts["host"] = host
    facts["seen"] = os.environ["FAKE_HOSTS"].split()
    if host == "old":
        facts["packages"]["numpy"] = "1.0.0"
    print("DOCTOR " + json.dumps(facts))
"""


def doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffmoe_scale.doctor", "--port", str(free_port()), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.run(
        command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=240
    )


def test_this_machine_is_asked_and_nothing_is_left(tmp_path: Path) -> None:
    answer = doctor("--shared", str(tmp_path), "--json")
    (facts,) = json.loads(answer.stdout[: answer.stdout.rindex("]") + 1])
    assert facts["host"] == socket.gethostname() and facts["seen"] == [facts["host"]]
    assert facts["packages"]["torch"] and facts["write_mb_s"] > 0
    assert abs(facts["clock_offset_s"]) < 1 and "1 of 1 node answered" in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_in_the_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = [(one, signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGHUP)]
    seen: list[Path] = []

    def ask(*_: object) -> None:
        seen.extend(tmp_path.iterdir())
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Nodes, "ask", ask)
    try:
        assert main(["--shared", str(tmp_path), "--port", str(free_port())]) == 130
    finally:
        for one, handler in before:
            signal.signal(one, handler)
    assert len(seen) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_shared_folder_that_is_none_is_named_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["--shared", str(tmp_path / name)]) == 2
    expected = f"error: --shared is {tmp_path / name}; expected a folder that exists on all nodes\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], port: int) -> None:
    assert main(["--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: --port is {port}; expected 1 to 65535\n"


def test_an_environment_without_packages_is_a_finding_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    command = [sys.executable, "-S", "-m", "diffmoe_scale.doctor", "--shared", str(tmp_path / "shared")]
    answer = subprocess.run(
        [*command, "--port", str(free_port())],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode in (0, 1) and "Traceback" not in answer.stderr, answer.stderr


def test_hosts_are_asked_over_ssh_and_the_bad_ones_named(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(FAKE_SSH.format(python=sys.executable))
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "hostfile").write_text("one slots=8\n# a comment\ntwo slots=8\nold slots=8\ndead slots=8\n")
    answer = doctor(
        "--hostfile",
        str(tmp_path / "hostfile"),
        "--shared",
        str(tmp_path),
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        FAKE_HOSTS="one two old",
    )
    lines = answer.stdout.splitlines()
    assert answer.returncode == 1 and "3 of 4 nodes answered" in answer.stderr, answer.stderr
    assert "dead: gave no answer (ssh: connect to host dead port 22: Connection refused)" in lines
    assert any(line.startswith("old: numpy: 1.0.0, the others ") for line in lines), lines
    assert not any(line.startswith(("one: numpy", "two: numpy")) for line in lines)


def test_the_head_answers_with_its_clock() -> None:
    port = free_port()
    with listening(port), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"?")
        assert float(connection.recv(64)) == pytest.approx(time.time(), abs=5)
        with pytest.raises(ValueError, match=f"--port is {port}, which cannot be used here"), listening(port):
            pass


@pytest.mark.parametrize(
    ("text", "words"),
    [("one\n", "line 1 is 'one'"), ("# nobody\n", "names no host"), ("a slots=x", "'a slots=x'")],
)
def test_a_host_file_of_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_hosts(tmp_path / "hostfile")
