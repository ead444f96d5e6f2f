"""A run on each kind of autoencoder, from pictures to pictures: cached, trained, sampled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.generate import generate
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.encoders.autoencoder.models import CPU, FORMATS, config_of, model_of_kind
from tests.prepare.feature_sets import cache
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import text_settings, tiny_config

KINDS = ("repa-e", "flux2", "dc", "qwen-image")
"""Each way of calling a network and of counting channels."""


def train_each(context: ParallelContext, runs: Sequence[Sequence[str]]) -> None:
    for settings in runs:
        config = tiny_config(settings)
        train(config, context, RunDirectory(Path(config.run.directory)))


def draw_each(folders: Sequence[str]) -> list[np.ndarray]:
    """Two pictures of each run, whole and in tiles."""
    pictures = []
    for folder in folders:
        for tile in (0, 32):
            pipeline = load_pipeline(folder, settings=[f"autoencoder.tile={tile}"])
            drawn: list[Image.Image] = list(generate(pipeline, ["one", "two"], steps=2, height=48, width=64))
            pictures.append(np.stack([np.asarray(picture) for picture in drawn]))
    return pictures


def settings_of(kind: str, folder: Path) -> list[str]:
    """A run in FOLDER/KIND, on the autoencoder saved in FOLDER/KIND-vae."""
    model_of_kind(kind).save_pretrained(folder / f"{kind}-vae")
    config = config_of(kind, folder / f"{kind}-vae")
    return [
        "run.steps=2",
        f"run.directory={folder / kind}",
        "autoencoder.kind=diffusers",
        f"autoencoder.path={config.path}",
        f"autoencoder.normalization={config.normalization}",
        f"model.channels={FORMATS[kind][0]}",
        "model.image_size=32",
        "model.patch_size=2",
    ]


def test_each_kind_is_cached_trained_on_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    common, runs = text_settings(tmp_path), []
    for kind in KINDS:
        settings = [*common, *settings_of(kind, tmp_path)]
        features = tmp_path / f"{kind}-features"
        assert cache(features, settings) == 0
        found = find_feature_set(sorted(features.glob("*.tar")))
        assert found is not None
        autoencoder = build_autoencoder(config_of(kind, tmp_path / f"{kind}-vae"), device=CPU)
        assert (found.source.channels, found.source.factor) == FORMATS[kind]
        assert found.source.autoencoder == autoencoder.fingerprint()
        runs.append([*settings, f"data.train=[{features}/*.tar]", "data.validation=[]"])
    run_on_ranks(train_each, 1, runs, expert_parallel=1)
    for kind in KINDS:
        losses = [line["loss/diffusion"] for line in read_metrics(tmp_path / kind / "metrics.jsonl")]
        assert len(losses) == 2 and np.isfinite(losses).all()
    pictures = run_alone(draw_each, [str(tmp_path / kind) for kind in KINDS])
    for whole, tiled in zip(pictures[::2], pictures[1::2], strict=True):
        assert whole.shape == tiled.shape == (2, 48, 64, 3)
        assert whole.std() > 0 and not np.array_equal(whole, tiled)
