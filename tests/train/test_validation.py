import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.validation import Validation, choose_prompts
from tests.data.samples import make_sample, write_shard
from tests.ranks import run_on_ranks
from tests.train.runs import compute_loss, text_settings, tiny_config, tiny_pipeline


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Ten validation samples, of which one cannot be decoded; micro-batches of two do not divide them among
    two ranks."""
    settings = [*text_settings(tmp_path), "run.micro_batch=2", "sampling.steps=2", "sampling.guidance=1"]
    samples = {f"2_{row}": make_sample(2, row) for row in range(10)}
    samples["2_3"]["png"] = b"no picture"
    write_shard(tmp_path / "shard-002.tar", samples)
    train_tokenizer(["caption 0 1", "caption 2 3"], vocabulary=300, path=tmp_path / "run" / "tokenizer.model")
    return settings


def make_validation(context: ParallelContext, settings: list[str]) -> tuple[Validation, Networks]:
    config = tiny_config(settings)
    directory = RunDirectory(Path(config.run.directory))
    pipeline = tiny_pipeline(config, context.megatron_groups, tokenizer=directory.tokenizer)
    reader = build_reader(config.data, config.data.train, model=config.model, seed=0)
    return Validation(config, context, directory, pipeline, reader), pipeline


def validation_losses(context: ParallelContext, settings: list[str]) -> list[float]:
    validation, _ = make_validation(context, settings)
    return [validation.loss()["loss/validation"] for _ in range(2)]


def validation_loss_by_hand(context: ParallelContext, settings: list[str]) -> float:
    """The mean over the nine good samples; every chunk of two is a pool of its own."""
    validation, pipeline = make_validation(context, settings)
    assert validation.reader is not None
    total = 0.0
    with torch.no_grad():
        for batch in validation.reader.validation_batches(limit=10, dp_rank=0, dp_size=1, micro_batch=2):
            total += 2 * float(
                compute_loss(pipeline.denoiser, pipeline, batch, seed=1).parts["loss/diffusion"]
            )
    return total / 9


def test_loss_is_the_mean_over_good_samples_whoever_shares_them(settings: list[str]) -> None:
    (expected,) = run_on_ranks(validation_loss_by_hand, 1, settings)
    (alone,) = run_on_ranks(validation_losses, 1, settings)
    pairs = run_on_ranks(validation_losses, 2, [*settings, "parallel.expert_parallel=2"], expert_parallel=2)
    # Sums in another order.
    np.testing.assert_allclose([alone, *pairs], expected, rtol=1e-6)
    assert alone[0] == alone[1], "noise and times never change"


def losses_and_warnings(
    context: ParallelContext, settings: list[str]
) -> tuple[list[dict[str, float]], list[str]]:
    validation, _ = make_validation(context, settings)
    records: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logging.getLogger("diffmoe_scale.train.validation").addHandler(Kept())
    return [validation.loss() for _ in range(2)], records


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_that_read_no_sample_is_no_loss(
    settings: list[str], tmp_path: Path, world_size: int
) -> None:
    samples = {f"2_{row}": make_sample(2, row) | {"png": b"no picture"} for row in range(10)}
    write_shard(tmp_path / "shard-002.tar", samples)
    main, *others = run_on_ranks(losses_and_warnings, world_size, settings)
    assert main[0] == [{}, {}]
    assert len(main[1]) == 2 and main[1][0].startswith(
        "unusable are 10 of 10 validation samples, so there is no loss/validation (shard-002.tar/2_0: "
    )
    assert others == [([{}, {}], [])] * (world_size - 1)


def test_unusable_validation_samples_are_counted_once(settings: list[str]) -> None:
    ((losses, warnings),) = run_on_ranks(losses_and_warnings, 1, settings)
    assert losses[0] == losses[1] and losses[0]["loss/validation"] > 0
    (warning,) = warnings
    assert warning.startswith("unusable are 1 of 10 validation samples, so loss/validation is the mean")
    assert "shard-002.tar/2_3: " in warning


def draw(context: ParallelContext, settings: list[str]) -> tuple[str, bytes]:
    validation, _ = make_validation(context, settings)
    path = validation.draw(7)
    return path.name, path.read_bytes() if context.is_main else b""


def test_ranks_share_the_pictures_and_the_main_one_writes_all(settings: list[str], tmp_path: Path) -> None:
    prompts = "telemetry.sample_prompts=[caption 1, caption 2, caption 3]"
    ((name, _),) = run_on_ranks(draw, 1, [*settings, prompts])
    assert name == "step_00000007.png"
    path = tmp_path / "run" / "samples" / name
    alone = np.asarray(Image.open(path)).astype(int)
    path.unlink()
    run_on_ranks(draw, 2, [*settings, prompts, "parallel.expert_parallel=2"], expert_parallel=2)
    # Products of matrices of another height round differently: one step of 255.
    assert np.abs(np.asarray(Image.open(path)).astype(int) - alone).max() <= 1


def test_pictures_of_a_capacity_are_drawn_by_the_rule_of_which_it_is_calibrated(
    settings: list[str],
) -> None:
    """A calibration would hold for one step's weights."""
    settings = [*settings, "telemetry.sample_prompts=[caption 1]", "telemetry.sample_every=1"]
    ((_, plain),) = run_on_ranks(draw, 1, settings)
    ((_, asked),) = run_on_ranks(draw, 1, [*settings, "sampling.capacity=1.3"])
    assert asked == plain


def test_prompts_are_captions_of_the_data_unless_told_and_labels_in_class_mode(settings: list[str]) -> None:
    config = tiny_config(settings)
    reader = build_reader(config.data, config.data.validation, model=config.model, seed=0)
    assert choose_prompts(config, reader) == [f"caption 2 {row}" for row in range(10)]
    assert choose_prompts(tiny_config([*settings, "telemetry.sample_prompts=[a star]"]), reader) == ["a star"]
    assert choose_prompts(tiny_config([]), reader) == [0, 1, 2, 3, 4]
