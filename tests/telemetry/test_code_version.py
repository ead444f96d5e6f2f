import subprocess
from pathlib import Path

import pytest

from diffmoe_scale import __version__
from diffmoe_scale.telemetry.code_version import code_version, commit_of


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_that_of_the_repository_and_says_whether_files_differ(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("1")
    git(tmp_path, "init", "-q")
    assert commit_of(file) == "unknown"  # installed below somebody else's repository
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(file) == commit and len(commit) == 40
    file.write_text("2")
    assert commit_of(file) == f"{commit}-dirty"


def test_commit_is_unknown_outside_of_a_repository_and_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit_of(tmp_path / "a.py") == "unknown"
    monkeypatch.setenv("PATH", "")
    assert code_version() == {"version": __version__, "commit": "unknown"}
