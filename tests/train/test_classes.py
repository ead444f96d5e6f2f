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
from tests.encoders.autoencoder.models import tiny_model
from tests.prepare.folders import add_picture
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import TINY, tiny_config
from tools import cache_features, prepare_shards


def train_each(context: ParallelContext, runs: list[list[str]]) -> None:
    for settings in runs:
        config = tiny_config(settings)
        train(config, context, RunDirectory(Path(config.run.directory)))


def draw_each(folders: list[str]) -> list[np.ndarray]:
    """Pictures of two classes of each run."""
    drawn: list[Image.Image] = []
    for folder in folders:
        drawn += generate(load_pipeline(folder), [0, 2], steps=2)
    return [np.asarray(picture) for picture in drawn]


def test_a_tree_of_folders_becomes_a_model_of_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On pictures, and on latents that were computed before."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(variable, value)
    for name in ("n01", "n02", "n03"):
        for number in range(12):
            add_picture(tmp_path / "in", f"{name}/{number}.png", color=(number * 20, 0, 0), size=(16, 16))
    out = tmp_path / "out"
    command = ["--input", str(tmp_path / "in"), "--output", str(out), "--classes", "folders"]
    assert prepare_shards.main([*command, "--validation", "0.2"]) == 0
    assert "3 classes from 0 (n01) to 2 (n03)" in capsys.readouterr().out
    settings = [
        "run.steps=2",
        "model.num_classes=3",
        f"data.train=[{out}/train-*.tar]",
        f"data.validation=[{out}/validation-*.tar]",
        "telemetry.validate_every=2",
        "telemetry.sample_every=2",
        "sampling.steps=2",
        "telemetry.tensorboard=false",
        "telemetry.log_every=1",
    ]
    tiny_model().save_pretrained(tmp_path / "vae")
    vae = ["autoencoder.kind=diffusers", f"autoencoder.path={tmp_path / 'vae'}", "model.channels=16"]
    vae += ["model.patch_size=2"]
    (tmp_path / "empty.yaml").touch()
    command = ["--config", str(tmp_path / "empty.yaml"), "--input", f"{out}/*.tar"]
    command += ["--output", str(tmp_path / "features"), *TINY, *settings, *vae]
    assert cache_features.main(command) == 0
    pictures = [*settings, f"run.directory={tmp_path / 'pictures'}"]
    latents = [*settings, *vae, f"run.directory={tmp_path / 'latents'}"]
    latents += [f"data.train=[{tmp_path}/features/train-*.tar]"]
    latents += [f"data.validation=[{tmp_path}/features/validation-*.tar]"]
    run_on_ranks(train_each, 1, [pictures, latents])
    for run in ("pictures", "latents"):
        lines = list(read_metrics(tmp_path / run / "metrics.jsonl"))
        assert [line["step"] for line in lines] == [1, 2]
        assert all(np.isfinite(line["loss/diffusion"]) for line in lines)
        assert not any(line.get("data/bad/label", 0) for line in lines)
    drawn = run_alone(draw_each, [str(tmp_path / run) for run in ("pictures", "latents")])
    assert [picture.shape for picture in drawn] == [(16, 16, 3)] * 4
