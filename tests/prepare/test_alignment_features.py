"""Features for alignment in shards: what a run would compute of the pictures, and what is refused."""

from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.load import load_config
from diffmoe_scale.data.features.check import check_teacher
from diffmoe_scale.data.reading.batch import to_unit_range
from diffmoe_scale.encoders.vision.teacher import Teacher
from tests.data.samples import pixels_of
from tests.encoders.vision.models import write_teacher
from tests.prepare.feature_sets import BUCKETS, batches, cache, reader

pytestmark = pytest.mark.usefixtures("one_process")
BF16 = 2**-8


@pytest.mark.parametrize("layout", ["squares", "buckets", "flipped"])
def test_shards_hold_what_the_encoder_says_of_the_pictures(
    tmp_path: Path, settings: list[str], layout: str
) -> None:
    """Of the same crop and flip, on the grid of the network's tokens, to the rounding of bf16."""
    write_teacher(tmp_path / "teacher")
    extra = {"squares": [], "buckets": list(BUCKETS), "flipped": ["data.horizontal_flip=true"]}[layout]
    settings = [*settings, *extra, f"alignment.encoder={tmp_path / 'teacher'}", "alignment.block=1"]
    assert cache(tmp_path / "cache", settings) == 0
    config = load_config(None, settings)
    raw = reader(config, str(config.data.train[0]).replace("shard-*", "shard-00[01]"))
    cached = reader(config, f"{tmp_path}/cache/shard-00[01].tar")
    teacher = Teacher(str(tmp_path / "teacher"), precision="fp32")
    for of_pictures, of_features in zip(batches(raw, 3), batches(cached, 3), strict=True):
        assert of_pictures.keys == of_features.keys and of_features.latents_BCHW is not None
        assert of_features.teacher_BNZ is not None and of_pictures.teacher_BNZ is None
        grid = of_features.latents_BCHW.shape[2] // 2, of_features.latents_BCHW.shape[3] // 2
        expected_BNZ = teacher.features(to_unit_range(pixels_of(of_pictures)), grid)
        found_BNZ = of_features.teacher_BNZ.float()
        torch.testing.assert_close(found_BNZ, expected_BNZ, rtol=2 * BF16, atol=BF16)


def test_what_alignment_would_not_compute_is_refused(tmp_path: Path, settings: list[str]) -> None:
    write_teacher(tmp_path / "teacher")
    aligned = [*settings, f"alignment.encoder={tmp_path / 'teacher'}", "alignment.block=1"]
    assert cache(tmp_path / "with", aligned) == 0
    assert cache(tmp_path / "without", settings) == 0
    config = load_config(None, settings)
    with_features, without = (
        reader(config, f"{tmp_path}/{name}/*.tar").source.features for name in ("with", "without")
    )
    assert with_features is not None and without is not None
    teacher = Teacher(str(tmp_path / "teacher"), precision="fp32").fingerprint()
    check_teacher(with_features.source, teacher=teacher, patch=2)
    with pytest.raises(ValueError, match=r"alignment\.encoder is .*; expected nothing: the shards"):
        check_teacher(without.source, teacher=teacher, patch=2)
    with pytest.raises(ValueError, match=r"features of other settings: teacher '.*' instead of 'other'"):
        check_teacher(with_features.source, teacher="other", patch=2)
    with pytest.raises(ValueError, match=r"teacher_patch 2 instead of 4"):
        check_teacher(with_features.source, teacher=teacher, patch=4)
    # A set without alignment states what sets always did.
    assert "teacher" not in without.source.stated()
