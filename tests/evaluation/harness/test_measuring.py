"""Metrics of an evaluation with a real network: those of the pictures on disk, and measured once."""

from dataclasses import asdict
from pathlib import Path
from typing import Any  # settings of any type

import pytest
import torch
from PIL import Image

from diffmoe_scale.evaluation.harness.measuring import MetricsKeeper
from diffmoe_scale.evaluation.metrics.pictures import open_pictures
from diffmoe_scale.evaluation.metrics.scorer import load_metrics
from tests.evaluation.harness.runs import evaluate, train, write_config
from tests.evaluation.metrics.networks import blobs, timm_config, write_lite0
from tests.ranks import run_alone, run_on_ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_on_ranks(train, 1, str(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "reference").mkdir()
    for place, pixels in enumerate(blobs(8, seed=0, side=32)):
        Image.fromarray(pixels).save(folder / f"reference/{place}.png")
    config = timm_config(
        write_lite0(folder / "lite0.pth"), folder / "reference", cache=str(folder / "cache"), timm_size=32
    )
    return asdict(config) | {"names": list(config.names)}


def measure_often(config: Path, reference: Path) -> tuple[list[int], list[list[Any]], list[list[Any]]]:
    """How often was measured in each of three evaluations, the last after a picture of the reference changed;
    the values of the first, and of the pictures on disk."""
    counts: list[int] = []
    compute = MetricsKeeper._compute

    def counting(keeper: MetricsKeeper, *arguments: Any) -> Any:
        counts[-1] += 1
        return compute(keeper, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsKeeper, "_compute", counting)
        counts.append(0)
        _, results, _ = evaluate(config)
        kept = [[value["value"] for value in result.metrics] for result in results]
        metrics = load_metrics(
            timm_config(reference.parent / "lite0.pth", reference, timm_size=32), torch.device("cpu")
        )
        folders = [config.parent / "out" / result.folder / "pictures" for result in results]
        found = [[one.value for one in metrics.score(open_pictures(folder))] for folder in folders]
        counts.append(0)
        evaluate(config)
        counts.append(0)
        Image.fromarray(blobs(1, seed=9, side=32)[0]).save(reference / "3.png")
        evaluate(config)
    return counts, kept, found


def test_metrics_are_those_of_the_pictures_and_measured_once(
    run: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path, run, sampling={}, metrics=settings)
    counts, kept, found = run_alone(measure_often, config, Path(settings["reference"]))
    assert counts == [3, 0, 3]
    for one, other in zip(kept, found, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
