"""The recipes in configs/: what their headers say, and a small twin of each that trains."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.data.samples import color, encode, write_shards
from tests.encoders.autoencoder.models import THREE_BLOCKS, tiny_model
from tests.ranks import run_on_ranks

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("configs/**/*.yaml"))
SIZE = re.compile(r"# ([\d.]+) ([MB]) parameters, ([\d.]+) ([MB]) activated")
UNITS = {"M": 1e6, "B": 1e9}
STEPS = 2


def sd_folder(folder: Path) -> Path:
    """The config.json of an autoencoder with 4 channels at an eighth of the pixels; no weights."""
    folder.mkdir()
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8] * 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def at_folder(recipe: Path, folder: Path) -> Config:
    """The config of a recipe, with the folder where it names an autoencoder's."""
    config = load_config(recipe)
    return load_config(recipe, [f"autoencoder.path={folder}"]) if config.autoencoder.path else config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_header_says_how_large_the_model_is(recipe: Path, tmp_path: Path) -> None:
    """Numbers with as many digits as are given."""
    size = count_parameters(at_folder(recipe, sd_folder(tmp_path / "vae")))
    found = SIZE.search(recipe.read_text(encoding="utf-8"))
    assert found is not None, "expected a line such as '# 16.5 M parameters, 8.2 M activated at capacity 1'"
    for number, unit, counted in ((found[1], found[2], size.total), (found[3], found[4], size.activated)):
        digits = len(number.partition(".")[2])
        assert number == f"{counted / UNITS[unit]:.{digits}f}", f"{counted:,}"


def twin_of(recipe: Path, folder: Path, shards: Sequence[Path]) -> list[str]:
    """Settings that make a recipe small: its structure, heads and experts, in blocks that are narrow and few.
    On one process, on a handful of pictures."""
    config = at_folder(recipe, folder / "vae")
    model, moe, text = config.model, config.moe, config.text
    factor = 8 if config.autoencoder.kind == "diffusers" else 1
    settings = {
        "run.directory": folder / recipe.stem,
        "run.steps": STEPS,
        "run.global_batch": 4,
        "run.micro_batch": 2,
        "data.train": f"[{shards[0]}]",
        "data.validation": f"[{shards[1]}]" if config.telemetry.validate_every else "[]",
        "data.workers": 0,
        "model.image_size": 4 * factor * model.patch_size,
        "model.depth": min(model.depth, moe.first_dense + 2 * moe.every),
        "model.width": 4 * model.heads,
        "text.width": 8 * text.heads,
        "text.vocabulary": 300,
        "parallel.expert_parallel": 1,
        "moe.backend": "grouped",
        "moe.precision": "model",
        "telemetry.log_every": 1,
        "telemetry.tensorboard": "false",
    }
    if factor > 1:
        settings["autoencoder.path"] = folder / "vae"
    return [f"{name}={value}" for name, value in settings.items()]


def train_each(context: ParallelContext, runs: Sequence[tuple[str, list[str]]]) -> None:
    for recipe, settings in runs:
        config = load_config(Path(recipe), settings)
        train(config, context, RunDirectory(Path(config.run.directory)))


def test_a_small_twin_of_each_recipe_trains(tmp_path: Path) -> None:
    blocks = {name: values + values[:1] for name, values in THREE_BLOCKS.items() if name != "norm_num_groups"}
    tiny_model(latent_channels=4, scaling_factor=0.18215, **blocks).save_pretrained(tmp_path / "vae")
    samples = {
        f"{shard}_{row}": {
            "png": encode(Image.new("RGB", (64, 64), color(shard, row))),
            "txt": f"caption {row}".encode(),
            "cls": str(row).encode(),
        }
        for shard in range(2)
        for row in range(8)
    }
    shards = write_shards(tmp_path, [8, 8], replaced=samples)
    runs = [(str(recipe), twin_of(recipe, tmp_path, shards)) for recipe in RECIPES]
    run_on_ranks(train_each, 1, runs)
    for recipe in RECIPES:
        lines = list(read_metrics(tmp_path / recipe.stem / "metrics.jsonl"))
        assert [line["step"] for line in lines] == [*range(1, STEPS + 1)], recipe.name
        assert all(np.isfinite(line["loss/diffusion"]) for line in lines), recipe.name
