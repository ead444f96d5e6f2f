"""Checkpoints that several files look at."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.states import save
from tests.ranks import run_on_ranks


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20 of two ranks; for copying."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_on_ranks(save, 2, folder, [10, 20])
    return folder


@pytest.fixture
def copy(two_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "copy"))
