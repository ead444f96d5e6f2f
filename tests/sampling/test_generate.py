"""Streams of pictures, and what notebooks call."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type are passed on

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.sampling import batch as module
from diffmoe_scale.sampling.batch import Generated, generate_batch, generate_batches, number_requests
from diffmoe_scale.sampling.generate import generate
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.telemetry.picture_grid import to_pixels
from tests.sampling.models import NUM_CLASSES, PLAIN, SIZE, build, config, text_networks


@pytest.fixture
def pipeline() -> Pipeline:
    settings = config(sampling=PLAIN)
    return Pipeline(build(settings), settings, RunDirectory(Path("unused")), Path("unused"), 1)


def test_pictures_are_those_of_one_batch_whatever_the_batches(pipeline: Pipeline) -> None:
    expected = to_pixels(
        generate_batch(pipeline.networks, number_requests([0, 1, 2], seed=7), PLAIN).images_BCHW
    )
    pictures = list(generate(pipeline, [0, 1, 2], seed=7, batch=2))
    assert [picture.size for picture in pictures] == [(SIZE, SIZE)] * 3
    # Other numbers of rows round differently: one step of 255.
    assert np.abs(np.stack([np.asarray(picture) for picture in pictures]).astype(int) - expected).max() <= 1
    assert pictures[1].info == {"prompt": 1, "seed": 7, "index": 1}


@pytest.mark.parametrize("attention", ["cross", "joint"])
@pytest.mark.parametrize("positions", ["sincos", "rope2d"])
def test_a_model_of_squares_draws_other_shapes(positions: str, attention: str, tmp_path: Path) -> None:
    model = {"positions": positions, "attention": attention, "text_projection": attention == "joint"}
    networks = text_networks(tmp_path, **model)
    settings = config(sampling=PLAIN, model=replace(config().model, conditioning="text", num_classes=0))
    pipeline = Pipeline(networks, settings, RunDirectory(Path("unused")), Path("unused"), 1)
    wide, high = (
        np.asarray(next(generate(pipeline, "red circle", seed=3, width=width, height=height)))
        for width, height in ((12, 8), (8, 12))
    )
    assert wide.shape == (8, 12, 3) and high.shape == (12, 8, 3)
    assert wide.std() > 0 and high.std() > 0


def test_pictures_come_batch_by_batch(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def count(networks: Any, requests: Any, sampling: Any, **options: Any) -> Generated:
        drawn.append(len(requests))
        return generate_batch(networks, requests, sampling, **options)

    monkeypatch.setattr(module, "generate_batch", count)
    pictures = generate(pipeline, [0, 1, 2, 0, 1], batch=2)
    assert isinstance(pictures, Iterator) and drawn == []
    assert isinstance(next(pictures), Image.Image) and drawn == [2]
    assert len(list(pictures)) == 4 and drawn == [2, 2, 1]


def test_one_prompt_is_one_picture_and_none_is_none(pipeline: Pipeline) -> None:
    assert len(list(generate(pipeline, 2))) == 1 and list(generate(pipeline, [])) == []
    assert list(generate_batches(pipeline.networks, [], PLAIN)) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("red circle", {}, "'red circle' is no prompt for a class-conditional model; expected labels"),
        ([True], {}, "True is no prompt"),
        (NUM_CLASSES, {}, "the label is 3; expected 0 to 2"),
        (0, {"seed": -1}, "the seed is -1; expected a whole number, 0 to 4294967295"),
        (0, {"seed": 2**32}, "the seed is 4294967296"),
        (0, {"seed": 1.5}, "the seed is 1.5"),
        (0, {"negative_prompt": "blue"}, "a class-conditional model reads no captions"),
        (0, {"step": 4}, "sampling has no setting 'step'; expected one of batch, "),
        (0, {"steps": 10**400}, "sampling.steps is 1000"),
        (0, {"guidance": 10**400}, "sampling.guidance is 1000"),
        (0, {"steps": "4"}, "sampling.steps is '4'; expected a number"),
        (0, {"steps": 0}, "sampling.steps"),
        (0, {"guidance": float("nan")}, "sampling.guidance is nan"),
        (0, {"selection": "best"}, "sampling.selection is 'best'; expected one of threshold, "),
        (0, {"sampler": "best"}, "sampling.sampler is 'best'; expected one of euler, heun, "),
        (0, {"sampler": "ancestral"}, "sampling.sampler is 'ancestral'; expected one of euler, heun, "),
        (0, {"batch_invariant": 1}, "sampling.batch_invariant is 1"),
        (0, {"guidance_channels": 4}, "sampling.guidance_channels is 4; expected at most model.channels"),
        (0, {"width": 7}, "sampling.width is 7; expected a multiple of 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(
    pipeline: Pipeline, prompts: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        generate(pipeline, prompts, **settings)
    assert message in str(refused.value)


def test_a_negative_prompt_without_guidance_is_refused(tmp_path: Path) -> None:
    settings = config(sampling=PLAIN)
    model = Pipeline(text_networks(tmp_path), settings, RunDirectory(tmp_path), tmp_path, 1)
    object.__setattr__(settings.model, "conditioning", "text")
    with pytest.raises(ValueError, match=r"sampling\.guidance is 1"):
        generate(model, "red circle", negative_prompt="blue")
    (picture,) = generate(model, "red circle", negative_prompt="blue", guidance=2.0)
    assert picture.size == (SIZE, SIZE)


def test_pictures_without_finite_numbers_are_said(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*arguments: Any, **options: Any) -> Generated:
        generated = generate_batch(*arguments, **options)
        generated.images_BCHW[0, 0, 0, 0] = float("nan")
        return generated

    monkeypatch.setattr(module, "generate_batch", spoil)
    assert len(list(generate(pipeline, [0, 1]))) == 2
    assert "numbers that are not finite in 1 picture," in caplog.text
