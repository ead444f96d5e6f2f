"""The prompts of a sweep, and those of its calibrations."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type

import pytest

from diffmoe_scale.evaluation import capacity_sweep
from diffmoe_scale.evaluation.capacity_sweep import Asked, open_sweep
from diffmoe_scale.evaluation.sweep_prompts import calibrated_for_scenes, make_groups
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.scenes.suites import SUITES, build_suite
from tests.evaluation.test_capacity_sweep import make_pipeline


def text_pipeline(folder: Path, **sampling: Any) -> Pipeline:
    """Its networks are not used."""
    pipeline = make_pipeline(folder)
    config = pipeline.config
    return replace(
        pipeline,
        config=replace(
            config,
            model=replace(config.model, conditioning="text", num_classes=0),
            sampling=replace(config.sampling, **sampling),
        ),
    )


def test_scenes_are_calibrated_with_other_prompts_of_all_suites(tmp_path: Path) -> None:
    pipeline = text_pipeline(tmp_path)
    path = Path(calibrated_for_scenes(pipeline).config.sampling.calibration_prompts)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 48 == pipeline.config.sampling.calibration_images
    groups = make_groups(pipeline, has_scenes=True, has_metrics=False, count=8, others=4, seed=0)
    assert {group.name for group in groups} == set(SUITES)
    two_objects = [prompt.text for prompt in build_suite("two_objects", num_prompts=10**3, seed=0)]
    tags = Counter(line in two_objects for line in lines)
    assert tags[True] == 8, "a sixth of them"
    (drawn,) = [group.prompts for group in groups if group.name == "color_attribution"]
    assert not set(drawn) & set(lines)


def test_prompts_that_cannot_be_read_are_said_before_the_first_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity_sweep, "_knows_scenes", lambda pipeline: True)
    pipeline = text_pipeline(tmp_path, calibration_prompts="/none.txt")
    with pytest.raises(ValueError, match=r"sampling\.capacity needs prompts to calibrate with"):
        open_sweep(pipeline, [Asked(0.0), Asked(0.8)], count=2, others=4, seed=0)
    sweep = open_sweep(pipeline, [Asked(0.0)], count=2, others=4, seed=0)
    assert not sweep.found.points
