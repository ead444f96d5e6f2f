"""Training with the tokens of a sample over several ranks equals training with whole samples."""

import re
from functools import cache
from pathlib import Path
from typing import Any  # options of numpy's comparisons

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.data.order.size import Size
from diffmoe_scale.train.overview import check_ranks, check_token_counts
from tests.data.samples import color, encode, write_shard
from tests.ranks import run_on_ranks
from tests.train.runs import Run, assemble, tiny_config, train_on_rank
from tests.train.whole_runs import assert_near, read_lines, train_runs

STEPS = 4
# Every token is of a picture of 64; sums over ranks are in another order.
LOSSES: dict[str, Any] = {"rtol": 2e-6}
WEIGHTS: dict[str, Any] = {"rtol": 0, "atol": 5e-6}
# Muon's steps have one length whatever the gradient's: rounding shows more.
MUON_WEIGHTS: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
CASES = {
    "sample": ["moe.pool=sample"],
    "rank": ["moe.pool=rank"],
    "data_parallel": ["moe.pool=data_parallel"],
    "rope and blocks recomputed": ["model.positions=rope2d", "model.activation_checkpointing=blocks"],
    "shared modulation": ["model.modulation=shared", "model.qk_norm=rms"],
    "expert_choice": ["moe.router=expert_choice"],
    "token_choice": ["moe.router=token_choice", "moe.balance_weight=0.1"],
    "dsmoe": ["moe.router=dsmoe", "moe.top_k=2"],
    "expert_race": ["moe.router=expert_race"],
    "expert_threshold": ["moe.router=expert_threshold", "moe.threshold_warmup_steps=2"],
    "promoe": ["moe.router=promoe", "moe.contrastive_weight=0"],
    "muon": ["optimizer.kind=muon"],
}
LAYOUTS = [(2, 2, 1, 1), (2, 2, 2, 2), (4, 2, 2, 1), (4, 2, 4, 2)]
"""World, sequence parallel, expert parallel, ZeRO stage."""


def settings_of(case: str, layout: tuple[int, int, int, int]) -> list[str]:
    """A micro-batch of a sequence group has the samples that one of the ranks by itself has; a pool over all
    has as many in every layout."""
    world, sequence, expert, stage = layout
    groups = world // sequence
    micro_batch = 4 // groups if case == "data_parallel" else 2
    parallel = [f"parallel.sequence_parallel={sequence}", f"parallel.expert_parallel={expert}"]
    return [
        *CASES[case],
        *parallel,
        f"parallel.zero_stage={stage}",
        f"run.micro_batch={micro_batch}",
        f"run.steps={STEPS}",
    ]


@cache
def trained(layout: tuple[int, int, int, int]) -> dict[str, Run]:
    world, sequence, expert, _ = layout
    names = {case: settings_of(case, layout) for case in CASES}
    answers = run_on_ranks(
        train_on_rank,
        world,
        list(names.values()),
        STEPS,
        expert_parallel=expert,
        sequence_parallel=sequence,
        timeout_s=280,
    )
    return {name: assemble([answer[number] for answer in answers]) for number, name in enumerate(names)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "world {} sp {} ep {} zero {}".format(*layout))
def test_losses_norms_and_weights_are_those_of_whole_samples(
    case: str, layout: tuple[int, int, int, int]
) -> None:
    got, expected = trained(layout)[case], trained((1, 1, 1, 1))[case]
    np.testing.assert_allclose(got.losses, expected.losses, **LOSSES)
    np.testing.assert_allclose(got.norms, expected.norms, rtol=1e-5)
    assert got.state.keys() == expected.state.keys()
    for name in expected.state:
        if not name.startswith("exp_avg"):
            tolerance = MUON_WEIGHTS if case == "muon" else WEIGHTS
            np.testing.assert_allclose(got.state[name], expected.state[name], **tolerance, err_msg=name)


JOINT = ["model.attention=joint", "model.positions=rope2d", "model.qk_norm=rms", "moe.shared_experts=1"]


@pytest.mark.parametrize("variant", [[], JOINT], ids=["cross", "joint"])
def test_a_run_on_captions_in_buckets_goes_on_with_tokens_over_other_ranks(
    settings: list[str], tmp_path: Path, variant: list[str]
) -> None:
    """Both of two ranks have every sample; then one rank, then two samples of two pairs of ranks."""
    samples = {
        f"0_{row}": {"png": encode(Image.new("RGB", (8 + row % 3 * 8, 16), color(0, row))), "txt": b"caption"}
        for row in range(24)
    }
    write_shard(tmp_path / "shard-000.tar", samples)
    buckets = ["buckets.enabled=true", "buckets.aspects=[0.5,1,2]", "buckets.step=8"]
    settings = [*settings, *buckets, *variant, "telemetry.validate_every=6", "checkpoint.every=100"]
    whole, parts = (f"run.directory={tmp_path / name}" for name in ("whole", "parts"))
    train_runs((1, 1), [*settings, whole, "run.steps=12"])
    train_runs((2, 2), [*settings, parts, "run.steps=4"], sequence_parallel=2)
    train_runs((1, 1), [*settings, parts, "run.steps=8"])
    train_runs((4, 2), [*settings, parts, "run.steps=12", "parallel.zero_stage=2"], sequence_parallel=2)
    lines, expected = read_lines(tmp_path / "parts"), read_lines(tmp_path / "whole")
    assert_near(lines, expected)
    names = ("samples", "data/bad_samples")
    assert [[line[name] for name in names] for line in lines.values()] == [
        [line[name] for name in names] for line in expected.values()
    ]
    assert lines[12]["loss/validation"] == pytest.approx(expected[12]["loss/validation"], rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["model.heads=2"], "parallel.sequence_parallel is 4; expected a divisor of model.heads (2)"),
        (["run.compile=true"], "expected 1 with run.compile"),
        (["moe.pool=expert_parallel"], "expected a divisor of parallel.expert_parallel (1)"),
        (["moe.router=promoe"], "expected 1 with moe.router 'promoe'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(wrong: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        tiny_config(["model.heads=4", "parallel.sequence_parallel=4", *wrong])


def test_images_and_worlds_that_do_not_split_are_refused() -> None:
    config = tiny_config(["model.heads=6", "model.width=36", "parallel.sequence_parallel=3"])
    with pytest.raises(ValueError, match="is 3; expected a divisor of the 16 tokens of images of 16 x 16"):
        check_ranks(config, ranks=3)
    with pytest.raises(ValueError, match=r"parallel\.sequence_parallel is 3 but the world has 4 ranks"):
        check_ranks(config, ranks=4)
    config = tiny_config(["parallel.sequence_parallel=2", "run.micro_batch=4"])
    check_ranks(config, ranks=4)  # two samples at once, eight in a step
    with pytest.raises(ValueError, match="is 2; expected a divisor of the 1 token of images of 4 x 4"):
        check_token_counts(config, [Size(16, 16), Size(4, 4)])
