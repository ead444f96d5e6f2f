"""Temporary folders of runs."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffmoe_scale.train.temporary import PREFIX, own_temporary_folder

KILLED = """
import os, signal, tempfile
from diffmoe_scale.train.temporary import own_temporary_folder
with own_temporary_folder():
    tempfile.mkdtemp()
    print("made", flush=True)
    signal.pause()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_packages_make_is_gone_at_the_end(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with own_temporary_folder() as folder:
        made = Path(tempfile.mkdtemp())
        assert made.parent == folder == Path(os.environ["TMPDIR"])
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == base
    assert os.listdir(base) == [] and os.environ["TMPDIR"] == str(base)
    assert tempfile.gettempdir() == str(base) and "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_the_next_start_removes_what_a_killed_one_left_and_nothing_else(base: Path) -> None:
    (base / "diffusers-cache").mkdir()
    (base / "diffmoe-link").symlink_to(base / "diffusers-cache")
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "made\n"
    with own_temporary_folder() as own:
        (other,) = set(base.glob(f"{PREFIX}*")) - {own, base / "diffmoe-link"}
    assert list(other.iterdir()), "it lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(other.iterdir()), "nobody has started since"
    with own_temporary_folder():
        assert not other.exists()
    assert sorted(os.listdir(base)) == ["diffmoe-link", "diffusers-cache"]
