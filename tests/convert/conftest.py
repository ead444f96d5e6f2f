"""Run directories that several files look at; for reading, or for copying."""

from pathlib import Path

import pytest
import torch

from tests.convert.pipelines import make_tokenizer
from tests.convert.runs import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a DiffMoE of classes."""
    folder = tmp_path_factory.mktemp("convert") / "run"
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def state(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What the run's last checkpoint holds, by family and name."""
    return make_run(tmp_path_factory.mktemp("again") / "run")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of a few captions."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
