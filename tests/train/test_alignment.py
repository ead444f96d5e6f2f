"""Representation alignment: its loss, its projector on several ranks, resumes, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.checkpoint.manifest import read_manifest
from diffmoe_scale.data.reading.batch import to_unit_range
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.train.alignment import Alignment, Projector
from diffmoe_scale.train.loss import Aligned, condition_of, denoising_loss
from tests.data.samples import pixels_of
from tests.encoders.vision.models import write_teacher
from tests.ranks import run_on_ranks
from tests.train.runs import compute_loss, tiny_batch, tiny_config, tiny_pipeline
from tests.train.whole_runs import Lines, assert_near, read_lines, train_in_turn, train_runs

NAMES = ("loss/diffusion", "loss/alignment", "alignment/cosine", "optimizer/gradient_norm", "loss/predictor")


@pytest.fixture
def aligned(settings: list[str], tmp_path: Path) -> list[str]:
    """A run that is aligned with a tiny encoder."""
    write_teacher(tmp_path / "teacher")
    return [
        *settings,
        f"alignment.encoder={tmp_path / 'teacher'}",
        "alignment.block=1",
        "alignment.projector_width=16",
    ]


def lines_without(names: tuple[str, ...], lines: Lines) -> Lines:
    return {
        step: {name: value for name, value in line.items() if name not in names}
        for step, line in lines.items()
    }


def test_the_projector_is_three_layers_with_silu_between() -> None:
    projector = Projector(4, 6, 3)
    projector.initialize(0)
    x_D = torch.randn(4)
    first, second, third = (
        value.detach().numpy() for name, value in projector.named_parameters() if "weight" in name
    )

    def silu(values: np.ndarray) -> np.ndarray:
        return values / (1 + np.exp(-values))

    expected = third @ silu(second @ silu(first @ x_D.numpy()))
    np.testing.assert_allclose(projector(x_D[None, None])[0, 0].detach().numpy(), expected, rtol=1e-5)


def test_the_loss_is_minus_the_weighted_mean_cosine() -> None:
    """Of tokens that point where the features do it is minus the weight; rows of weight 0 count as 0."""
    config = tiny_config([])
    pipeline = tiny_pipeline(config, single_rank_groups())
    pipeline.denoiser.transformer.aligned_block = 2
    batch = tiny_batch(0, 4, config=config)
    plain = compute_loss(pipeline.denoiser, pipeline, batch)
    batch.weight_B[1] = 0
    without = compute_loss(pipeline.denoiser, pipeline, batch)
    seen: list[torch.Size] = []

    def cosine(tokens_BND: torch.Tensor) -> torch.Tensor:
        seen.append(tokens_BND.shape)
        return torch.nn.functional.cosine_similarity(3 * tokens_BND, tokens_BND, dim=-1).mean(1)

    found = denoising_loss(
        pipeline.denoiser,
        pipeline.objective,
        batch,
        to_unit_range(pixels_of(batch)),
        condition_of(batch, pipeline),
        seed=0,
        selection=Selection(),
        aligned=Aligned(0.5, cosine),
    )
    assert seen == [torch.Size([4, 16, 32])]
    assert float(found.parts["alignment/cosine"]) == pytest.approx(0.75, abs=1e-6)
    assert float(found.parts["loss/alignment"]) == pytest.approx(-0.375, abs=1e-6)
    assert float(found.total - without.total) == pytest.approx(-0.375, abs=1e-5)
    assert "alignment/cosine" not in plain.parts


def test_two_ranks_align_as_one_and_a_stopped_run_goes_on_to_the_bit(
    aligned: list[str], tmp_path: Path
) -> None:
    """One rank with accumulation, two ranks with experts on both, and a run of one rank that is stopped at
    step 4, all of 8 steps; the cosine rises."""
    alone, spread, broken = (f"run.directory={tmp_path / name}" for name in ("alone", "spread", "broken"))
    train_runs(
        (1, 1),
        [*aligned, alone, "run.steps=8"],
        [*aligned, broken, "run.steps=4"],
        [*aligned, broken, "run.steps=8"],
    )
    train_runs((2, 2), [*aligned, spread, "run.steps=8", "parallel.zero_stage=2"])
    lines = read_lines(tmp_path / "alone")
    assert_near(read_lines(tmp_path / "spread"), lines, NAMES)
    resumed = read_lines(tmp_path / "broken")
    for step in range(5, 9):
        assert {name: resumed[step][name] for name in NAMES} == {name: lines[step][name] for name in NAMES}
    assert lines[8]["alignment/cosine"] > lines[1]["alignment/cosine"] + 0.01
    manifest = read_manifest(tmp_path / "alone" / "checkpoints" / "step_00000008")
    families = {name.split("/")[0] for name in manifest.shapes if "layers." in name}
    assert families == {"alignment"} and len(manifest.teacher) == 16


def test_weight_0_and_an_alignment_that_has_ended_are_plain_training_to_the_bit(
    aligned: list[str], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that ends after step 4 goes on as a plain one with the same weights, and asks no encoder."""
    plain, silent, ended, bare = (f"run.directory={tmp_path / name}" for name in ("a", "b", "c", "d"))
    end = "alignment.end_step=4"
    train_runs(
        (1, 1),
        [*settings, plain, "run.steps=6"],
        [*aligned, silent, "run.steps=6", "alignment.weight=0"],
        [*aligned, ended, "run.steps=4", end],
        [*aligned, bare, "run.steps=4", end],
        [*aligned, ended, "run.steps=8", end],
        [*settings, bare, "run.steps=8"],
    )
    ours = ("loss/alignment", "alignment/cosine")
    assert lines_without(ours, read_lines(tmp_path / "b")) == read_lines(tmp_path / "a")
    after, without = (read_lines(tmp_path / name) for name in ("c", "d"))
    assert [ours[1] in line for line in after.values()] == [True] * 4 + [False] * 4
    assert after == without


def test_another_encoder_is_refused_and_a_first_one_begins_anew(
    aligned: list[str], settings: list[str], tmp_path: Path
) -> None:
    write_teacher(tmp_path / "other", seed=1)
    other = f"alignment.encoder={tmp_path / 'other'}"
    late = f"run.directory={tmp_path / 'late'}"
    runs = [
        [*aligned, "run.steps=2"],
        [*aligned, "run.steps=4", other],
        [*aligned, "run.steps=4", other, "alignment.end_step=2"],
        [*settings, late, "run.steps=2"],
        [*aligned, late, "run.steps=4"],
        [*aligned, "alignment.block=3"],
    ]
    answers: list[str] = []
    for run in runs[:-1]:
        answers += run_on_ranks(train_in_turn, 1, [run])[0]
    assert answers[0] == answers[2] == answers[3] == answers[4] == ""
    assert (
        "alignment.encoder is " in answers[1] and "is aligned with an encoder of fingerprint " in answers[1]
    )
    with pytest.raises(ValueError, match=r"alignment.block is 3; expected at most model.depth \(2\)"):
        tiny_config(runs[-1])


def test_a_skipped_step_leaves_the_projector_alone() -> None:
    projector = Projector(4, 6, 3)
    alignment = Alignment.__new__(Alignment)
    alignment.projector, alignment.steps = projector, torch.zeros(1, dtype=torch.int64)
    before = [parameter.detach().clone() for parameter in projector.parameters()]
    projector(torch.full((1, 1, 4), torch.nan)).sum().backward()
    alignment.step(0.1, is_skipped=True)
    alignment.step(0.1, is_skipped=False)  # there is no gradient any more
    assert int(alignment.steps) == 0
    for parameter, was in zip(projector.parameters(), before, strict=True):
        assert torch.equal(parameter, was) and parameter.grad is None
