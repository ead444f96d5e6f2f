from pathlib import Path

import numpy as np
import pytest

from diffmoe_scale.config.load import load_config
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.sample_metrics import SampleMetrics, metric_prompts
from tests.evaluation.metrics.networks import LITE0, blobs, write_lite0
from tests.ranks import run_on_ranks
from tests.train.runs import text_settings, tiny_config, tiny_pipeline


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    weights = write_lite0(tmp_path / "lite0.pth")
    np.savez(tmp_path / "reference.npz", arr_0=blobs(12, seed=0, side=16))
    train_tokenizer(["caption 0 1", "caption 2 3"], vocabulary=300, path=tmp_path / "run" / "tokenizer.model")
    return [
        *text_settings(tmp_path),
        "sampling.steps=2",
        "sampling.batch=4",
        "telemetry.metrics_every=10",
        "telemetry.metrics_samples=13",
        "metrics.names=['fd:timm', 'kid:timm']",
        f"metrics.reference={tmp_path / 'reference.npz'}",
        f"metrics.timm_architecture={LITE0}",
        f"metrics.timm_weights={weights}",
        "metrics.timm_size=32",
    ]


def measure(context: ParallelContext, settings: list[str]) -> list[dict[str, float]]:
    config = tiny_config(settings)
    tokenizer = Path(config.run.directory) / "tokenizer.model"
    networks = tiny_pipeline(config, context.megatron_groups, tokenizer=tokenizer)
    reader = build_reader(config.data, config.data.train, model=config.model, seed=0)
    found = SampleMetrics(config, context, networks, sampling=config.sampling, reader=reader)
    return [found.measure() for _ in range(2)]


def test_ranks_draw_and_score_the_same_pictures_as_one(settings: list[str]) -> None:
    ((alone, again),) = run_on_ranks(measure, 1, settings)
    assert alone == again and set(alone) == {"metrics/fd_timm", "metrics/kid_timm"}
    two = run_on_ranks(measure, 2, settings)
    assert two[0] == two[1]
    # The feature network works in float32 on batches of other sizes.
    assert two[0][0] == pytest.approx(alone, rel=1e-3)


def test_expert_parallel_ranks_with_unequal_shares_do_not_hang(settings: list[str]) -> None:
    ((alone, _),) = run_on_ranks(measure, 1, settings)
    two = run_on_ranks(measure, 2, settings, expert_parallel=2)
    assert two[0][0] == pytest.approx(alone, rel=1e-3)


def test_prompts_begin_again_where_there_are_too_few(settings: list[str]) -> None:
    config = tiny_config(settings)
    reader = build_reader(config.data, config.data.validation, model=config.model, seed=0)
    prompts = metric_prompts(config, reader, 23)
    assert len(prompts) == 23 and prompts[:3] == prompts[10:13] and len(set(prompts)) == 10
    classes = tiny_config(["telemetry.metrics_samples=7"])
    assert metric_prompts(classes, reader, 7) == [0, 1, 2, 3, 4, 0, 1]


def test_metrics_during_training_need_names() -> None:
    with pytest.raises(
        ValueError, match=r"metrics\.names is .*expected metrics such as \[fid\] when telemetry"
    ):
        load_config(None, ["telemetry.metrics_every=5"])
