"""Suites over a model that draws perfect pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any  # networks and settings, which are not used

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation import scene_scores
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Generated, Request
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.scenes.suites import SUITES, build_suite
from tests.report.pictures import draw_claims
from tests.sampling.models import build, config

BATCH, PROMPTS = 8, 20


def perfect_batches(
    networks: Any, requests: Sequence[Request], sampling: Any, *, selection: Selection, title: str
) -> Iterator[Generated]:
    claims = {
        prompt.text: prompt.metadata["include"] for prompt in build_suite(title, num_prompts=PROMPTS, seed=3)
    }
    generator = np.random.default_rng(0)
    for first in range(0, len(requests), BATCH):
        batch = requests[first : first + BATCH]
        images = [draw_claims(claims[str(request.prompt)], generator) for request in batch]
        loads = LoadByTime()
        loads.add(1.0, torch.tensor([[0.5, 1.5]]), weight=len(batch))
        loads.add(0.5, torch.tensor([[2.0, 2.0]]), weight=len(batch))
        yield Generated(batch, torch.from_numpy(np.stack(images)), loads, 20 + 10 * (first > 0))


def test_perfect_pictures_score_one_in_every_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_scores, "generate_batches", perfect_batches)
    model = Pipeline(build(config()), load_config(None), RunDirectory(tmp_path), tmp_path / "checkpoint", 7)
    found = scene_scores.evaluate(model, SamplingConfig(), prompts_per_suite=PROMPTS, seed=3)
    assert list(found.scores) == list(SUITES) and found.step == 7
    for name, score in found.scores.items():
        assert score.score == 1 and score.shuffled < 1 and score.prompts == PROMPTS, name
        with Image.open(tmp_path / "samples" / f"evaluation-{name}.png") as grid:
            assert grid.width > 0
    assert found.capacity.times == [1.0, 0.5] and found.capacity.average == 1.5
    assert 20 < found.calls < 30
    assert found.capacity.load_TLE.tolist() == [[[0.5, 1.5]], [[2.0, 2.0]]]


def test_a_model_of_classes_is_refused(tmp_path: Path) -> None:
    settings = config()
    model = Pipeline(build(settings), settings, RunDirectory(tmp_path), tmp_path, 7)
    with pytest.raises(ValueError, match="need captions, but this model is class-conditional"):
        scene_scores.evaluate(model, SamplingConfig(), prompts_per_suite=2, seed=0)


def test_pictures_that_are_not_square_are_refused(tmp_path: Path) -> None:
    model = Pipeline(build(config()), load_config(None), RunDirectory(tmp_path), tmp_path, 7)
    with pytest.raises(ValueError, match="about square pictures"):
        scene_scores.evaluate(model, SamplingConfig(height=16), prompts_per_suite=2, seed=0)
