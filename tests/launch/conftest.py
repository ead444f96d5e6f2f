"""The launch script in a project of its own."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import ROOT, SCRIPT, write_program


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script in a project of its own, with a python and a config beside it."""
    write_program(tmp_path / ".venv" / "bin" / "python", f'PYTHONPATH={ROOT} exec {sys.executable} "$@"')
    (tmp_path / "a.tar").touch()
    config = f"run: {{directory: {tmp_path / 'run'}}}\ndata: {{train: [{tmp_path / 'a.tar'}]}}\n"
    (tmp_path / "a file").write_text(config, encoding="utf-8")
    (tmp_path / "launch").mkdir()
    return Path(shutil.copy(SCRIPT, tmp_path / "launch"))
