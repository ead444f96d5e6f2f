"""A run on several text encoders side by side, from captions to pictures: on the fly, cached, sampled."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.generate import generate
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.encoders.autoencoder.models import config_of, model_of_kind
from tests.encoders.text.language_models import write_model
from tests.encoders.text.texts import TOWER
from tests.prepare.feature_sets import cache
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import text_settings, tiny_config


def settings_of(folder: Path) -> list[str]:
    """On a tiny autoencoder, open_clip tower, T5 and Qwen3, and an encoder that is trained along."""
    model_of_kind("flux").save_pretrained(folder / "vae")
    write_model("t5", folder / "t5")
    write_model("qwen3", folder / "qwen3")
    (folder / "clip").mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**TOWER).state_dict(), folder / "clip" / "open_clip_model.safetensors")
    description = json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}})
    (folder / "clip" / "open_clip_config.json").write_text(description)
    encoders = [
        f"{{kind: open_clip, path: 'local-dir:{folder / 'clip'}', max_tokens: 16, precision: fp32}}",
        "{kind: sentencepiece, max_tokens: 8}",
        f"{{kind: transformers, path: '{folder / 't5'}', max_tokens: 32, precision: fp32}}",
        f"{{kind: transformers, path: '{folder / 'qwen3'}', max_tokens: 32, layer: -2, precision: fp32}}",
    ]
    autoencoder = config_of("flux", folder / "vae")
    return [
        *(word for word in text_settings(folder) if not word.startswith("text.max_tokens")),
        f"text.encoders=[{', '.join(encoders)}]",
        "model.text_projection=true",
        "run.steps=2",
        "autoencoder.kind=diffusers",
        f"autoencoder.path={autoencoder.path}",
        "model.channels=16",
        "model.image_size=16",
        "model.patch_size=2",
        "telemetry.validate_every=2",
    ]


def train_here(context: ParallelContext, settings: list[str], never_encodes: bool) -> None:
    if never_encodes:

        def refuse(encoder: FrozenTextEncoder, device: torch.device) -> None:
            raise AssertionError(f"{encoder.name} is loaded")

        FrozenTextEncoder.load = refuse  # type: ignore[method-assign, assignment]  # in this process alone
    config = tiny_config(settings)
    train(config, context, RunDirectory(Path(config.run.directory)))


def draw(folder: str) -> list[np.ndarray]:
    prompts = ["one", "", "two " * 99]
    drawn: list[Image.Image] = list(
        generate(load_pipeline(folder), prompts, steps=2, guidance=3.0, negative_prompt="three")
    )
    return [np.asarray(picture) for picture in drawn]


def losses_of(folder: Path) -> list[float]:
    return [line["loss/diffusion"] for line in read_metrics(folder / "metrics.jsonl")]


def test_several_encoders_are_trained_with_on_the_fly_or_cached_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(tmp_path)
    drawing = ["telemetry.sample_every=2", "sampling.steps=2", f"run.directory={tmp_path / 'fly'}"]
    run_on_ranks(train_here, 1, [*settings, *drawing], False)
    assert (tmp_path / "fly" / "samples" / "step_00000002.png").is_file()

    assert cache(tmp_path / "features", settings) == 0
    found = find_feature_set(sorted((tmp_path / "features").glob("*.tar")))
    assert found is not None and found.source.num_streams == 3
    features = f"{tmp_path / 'features'}/shard"
    run_on_ranks(
        train_here,
        1,
        [
            *settings,
            f"data.train=[{features}-000.tar,{features}-001.tar]",
            f"data.validation=[{features}-002.tar]",
            f"run.directory={tmp_path / 'cached'}",
        ],
        True,
    )
    on_the_fly, cached = losses_of(tmp_path / "fly"), losses_of(tmp_path / "cached")
    # Latents and features were stored in bf16.
    assert len(cached) == 2 and cached == pytest.approx(on_the_fly, rel=1e-2)
    for name in ("fly", "cached"):
        pictures = run_alone(draw, str(tmp_path / name))
        assert len({picture.tobytes() for picture in pictures}) == 3
