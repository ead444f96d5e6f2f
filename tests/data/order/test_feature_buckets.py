import itertools
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.source import SET_FILE
from diffmoe_scale.data.reading.build import build_reader
from tests.data.order.ratios import (
    bucket_reader,
    find_buckets,
    read_steps,
    write_feature_shards,
    write_mixed_shards,
)
from tests.data.samples import pixels_of, write_shards


def test_features_come_in_the_order_batches_and_shapes_of_their_pictures(tmp_path: Path) -> None:
    for name, write in (("pictures", write_mixed_shards), ("features", write_feature_shards)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    readers = [bucket_reader(tmp_path / name) for name in ("pictures", "features")]
    read = [
        [
            *itertools.chain(*read_steps(reader, 24)),
            *reader.validation_batches(limit=40, dp_rank=0, dp_size=1, micro_batch=3),
        ]
        for reader in readers
    ]
    for plain, ours in zip(*read, strict=True):
        assert ours.keys == plain.keys and ours.captions == plain.captions and ours.failures == []
        assert torch.equal(ours.indices_B, plain.indices_B) and torch.equal(ours.weight_B, plain.weight_B)
        assert torch.equal(ours.sizes_BZ, plain.sizes_BZ) and (ours.sizes_BZ[:, :2] > 0).all()
        count, height, width, _ = pixels_of(plain).shape
        assert ours.latents_BCHW.shape == (count, 1, height // 2, width // 2)


def test_features_of_another_shape_than_their_bucket_s_are_failures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_feature_shards(tmp_path, wrong="2_5")
    reader = bucket_reader(tmp_path)
    batches = list(itertools.chain(*read_steps(reader, 24)))
    failed = {
        key
        for batch in batches
        for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True)
        if weight == 0
    }
    assert failed == {"shard-002.tar/2_5"} and reader.judge.counts.keys() == {"features"}
    assert "shard-002.tar/2_5: ValueError: latents of shape (1, 1, " in caplog.text


def test_features_of_other_buckets_are_refused_before_their_sizes_are_read(tmp_path: Path) -> None:
    (path, *_) = write_feature_shards(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"aspects \(0\.5, .* instead of \(1\.0,\); set model\.image_size and buckets as they were",
    ):
        build_reader(
            DataConfig(),
            [str(path)],
            model=ModelConfig(image_size=16),
            seed=0,
            buckets=BucketConfig(enabled=True, aspects=(1.0,), step=2),
        )
    assert not list(tmp_path.glob("*.npz"))


def test_a_sample_of_stray_features_has_no_size(tmp_path: Path) -> None:
    write_shards(tmp_path, [2], replaced={"0_1": {"safetensors": b"x", "txt": b"caption"}})
    assert find_buckets(tmp_path).num_unknown == 1


def test_features_found_without_what_made_them_have_their_sizes_all_the_same(tmp_path: Path) -> None:
    write_feature_shards(tmp_path)
    # Kept for the next start, when features.safetensors may be there.
    (tmp_path / SET_FILE).unlink()
    assert find_buckets(tmp_path).num_unknown == 0
