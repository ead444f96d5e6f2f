"""Class-conditional training from a tree of folders to pictures of a class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.generate import generate
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.prepare.folders import add_picture
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import tiny_config
from tools import prepare_shards


def train_here(context: ParallelContext, settings: list[str]) -> None:
    config = tiny_config(settings)
    train(config, context, RunDirectory(Path(config.run.directory)))


def draw(folder: str) -> list[np.ndarray]:
    drawn: list[Image.Image] = list(generate(load_pipeline(folder), [0, 2], steps=2))
    return [np.asarray(picture) for picture in drawn]


def test_a_tree_of_folders_becomes_a_model_of_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("n01", "n02", "n03"):
        for number in range(12):
            add_picture(tmp_path / "in", f"{name}/{number}.png", color=(number * 20, 0, 0), size=(16, 16))
    out = tmp_path / "out"
    command = ["--input", str(tmp_path / "in"), "--output", str(out), "--classes", "folders"]
    assert prepare_shards.main([*command, "--validation", "0.2"]) == 0
    assert "3 classes from 0 (n01) to 2 (n03)" in capsys.readouterr().out
    settings = [
        "run.steps=2",
        f"run.directory={tmp_path / 'run'}",
        "model.num_classes=3",
        f"data.train=[{out}/train-*.tar]",
        f"data.validation=[{out}/validation-*.tar]",
        "telemetry.validate_every=2",
        "telemetry.sample_every=2",
        "sampling.steps=2",
        "telemetry.tensorboard=false",
        "telemetry.log_every=1",
    ]
    run_on_ranks(train_here, 1, settings)
    lines = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss/diffusion"]) for line in lines)
    assert not any(line.get("data/bad/label", 0) for line in lines)
    pictures = run_alone(draw, str(tmp_path / "run"))
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 2
