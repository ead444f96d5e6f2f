from pathlib import Path

import pytest
from PIL import Image

from tests.data.samples import color, encode, write_shard
from tests.train.whole_runs import assert_near, read_lines, train_runs


def test_experts_on_two_ranks_learn_as_on_one_also_when_the_layout_changes_on_the_way(
    settings: list[str], tmp_path: Path
) -> None:
    alone, spread, changing = (f"run.directory={tmp_path / name}" for name in ("alone", "spread", "changing"))
    train_runs((1, 1), [*settings, alone, "run.steps=20"])
    train_runs((2, 2), [*settings, spread, "run.steps=20"], [*settings, changing, "run.steps=6"])
    train_runs((1, 1), [*settings, changing, "run.steps=12"])
    train_runs((2, 2), [*settings, changing, "run.steps=20", "parallel.zero_stage=2"])
    assert len(read_lines(tmp_path / "alone")) == 20
    assert_near(read_lines(tmp_path / "spread"), read_lines(tmp_path / "alone"))
    assert_near(read_lines(tmp_path / "changing"), read_lines(tmp_path / "alone"))


def test_another_global_batch_goes_on_behind_the_samples_seen(settings: list[str], tmp_path: Path) -> None:
    train_runs((1, 1), [*settings, "run.steps=4"], [*settings, "run.steps=6", "run.global_batch=4"])
    assert [line["samples"] for line in read_lines(tmp_path / "run").values()] == [8, 16, 24, 32, 36, 40]


MODERN = [
    "model.attention=joint",
    "model.positions=rope2d",
    "model.qk_norm=rms",
    "model.modulation=shared",
    "moe.activation=swiglu",
    "moe.shared_experts=1",
    "moe.capacity_by_resolution=[[8,2.0]]",
]


@pytest.mark.parametrize(("variant", "capacities"), [([], (1, 1)), (MODERN, (2, 1))], ids=["paper", "modern"])
def test_run_in_buckets_goes_on_on_other_ranks_as_one_without_a_break(
    settings: list[str], tmp_path: Path, variant: list[str], capacities: tuple[float, float]
) -> None:
    """Stopped at step 5, within the first resolution, and at 9."""
    buckets = [
        "buckets.enabled=true",
        "buckets.aspects=[0.5,1,2]",
        "buckets.step=4",
        "buckets.resolutions=[[1,8],[8,16]]",
    ]
    samples = {
        f"0_{row}": {"png": encode(Image.new("RGB", (8 + row % 3 * 8, 16), color(0, row))), "txt": b"caption"}
        for row in range(24)
    }
    write_shard(tmp_path / "shard-000.tar", samples)
    settings = [
        *settings,
        *buckets,
        *variant,
        "model.size_conditioning=true",
        "checkpoint.every=100",
        "telemetry.validate_every=12",
    ]
    whole, parts = (f"run.directory={tmp_path / name}" for name in ("whole", "parts"))
    train_runs((1, 1), [*settings, whole, "run.steps=12"], [*settings, parts, "run.steps=5"])
    train_runs((2, 2), [*settings, parts, "run.steps=9"])
    train_runs((1, 1), [*settings, parts, "run.steps=12"])
    lines, expected = read_lines(tmp_path / "parts"), read_lines(tmp_path / "whole")
    assert [line["samples"] for line in lines.values()] == [line["samples"] for line in expected.values()]
    # More and smaller pictures in the first stage.
    assert expected[7]["samples"] > 7 * 8 * 3 and expected[12]["samples"] - expected[11]["samples"] < 16
    # Rounded down to whole tokens of each expert.
    assert [expected[step]["moe/capacity"] for step in (7, 12)] == pytest.approx(capacities, rel=0.1)
    assert_near(
        lines,
        {step: line for step, line in expected.items()},
        ("loss/diffusion", "loss/predictor", "optimizer/gradient_norm"),
    )
