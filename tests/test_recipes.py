"""The recipes in configs/: what their headers say, and a small twin of each that trains."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.run import train
from tests.data.samples import color, encode, write_shards
from tests.ranks import run_on_ranks
from tests.recipes import RECIPES, STEPS, twin_of, write_published, write_tiny

SIZE = re.compile(r"# ([\d.]+) ([MB]) parameters, ([\d.]+) ([MB]) activated")
UNITS = {"M": 1e6, "B": 1e9}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_header_says_how_large_the_model_is(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers with as many digits as are given."""
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path)
    size = count_parameters(load_config(recipe))
    found = SIZE.search(recipe.read_text(encoding="utf-8"))
    assert found is not None, "expected a line such as '# 16.5 M parameters, 8.2 M activated at capacity 1'"
    for number, unit, counted in ((found[1], found[2], size.total), (found[3], found[4], size.activated)):
        digits = len(number.partition(".")[2])
        assert number == f"{counted / UNITS[unit]:.{digits}f}", f"{counted:,}"


def train_each(context: ParallelContext, runs: Sequence[tuple[str, list[str]]]) -> None:
    for recipe, settings in runs:
        config = load_config(Path(recipe), settings)
        train(config, context, RunDirectory(Path(config.run.directory)))


def test_a_small_twin_of_each_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
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
