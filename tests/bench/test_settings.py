from collections.abc import Mapping
from pathlib import Path
from typing import Any  # rows of a table

import pytest

from diffmoe_scale.bench.settings import bench_settings
from tests.ranks import run_alone
from tests.train.runs import TINY, text_settings


def measure(settings: list[str], contenders: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    return bench_settings(None, settings, contenders, rounds=1)[0]


def test_each_contender_has_a_row_with_its_settings(tmp_path: Path) -> None:
    contenders = {"adamw": [], "muon": ["optimizer.kind=muon", "model.precision=bf16"]}
    settings = [*TINY, *text_settings(tmp_path)]
    adamw, muon = run_alone(measure, settings, contenders)
    assert adamw["over_first"]["median"] == adamw["first_over"]["median"] == 1
    assert muon["settings"] == "optimizer.kind=muon model.precision=bf16"
    assert muon["over_first"]["median"] == pytest.approx(muon["ms"]["median"] / adamw["ms"]["median"])
    assert muon["first_over"]["median"] == pytest.approx(1 / muon["over_first"]["median"])
    size = next(int(word.split("=")[1]) for word in TINY if word.startswith("run.global_batch="))
    assert adamw["images_per_s"] == pytest.approx(1e3 * size / adamw["ms"]["median"])
