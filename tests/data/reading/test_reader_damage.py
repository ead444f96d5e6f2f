import os
from pathlib import Path

import pytest

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from tests.data.reading.readers import first_batches, make_reader
from tests.data.samples import all_keys, header_offset, overwrite, write_shards


def test_a_broken_header_costs_one_sample_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path, [5, 5])
    overwrite(paths[1], header_offset(paths[1], "1_2.png") + 150, b"!" * 8)
    reader = make_reader(tmp_path)
    keys = {key for batch in first_batches(reader, 5) for key in batch.keys}
    assert reader.num_samples == 9 and keys == all_keys([5, 5]) - {"shard-001.tar/1_2"}
    assert (
        str(paths[1]) in caplog.text
        and "1_2" in caplog.text
        and reader.catalog.problems["broken header"] == 1
    )


def test_of_a_truncated_shard_the_whole_samples_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path, [5, 5])
    os.truncate(paths[0], header_offset(paths[0], "0_3.png") + 530)
    reader = make_reader(tmp_path)
    keys = {key for batch in first_batches(reader, 4) for key in batch.keys}
    assert keys == all_keys([3, 0]) | {f"shard-001.tar/1_{row}" for row in range(5)}
    assert f"{paths[0]}: truncated member: 0_3.png" in caplog.text


def test_a_shard_of_no_bytes_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty.tar").touch()
    reader = make_reader(tmp_path, [4, 4])
    assert {key for batch in first_batches(reader, 4) for key in batch.keys} == all_keys([4, 4])
    assert f"{tmp_path / 'empty.tar'} holds no sample" in caplog.text


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    with pytest.raises(ValueError, match=r"1 of 3 shards.*shard-002\.tar"):
        build_reader(
            DataConfig(), [f"{tmp_path}/shard-{{000..002}}.tar"], model=ModelConfig(image_size=4), seed=0
        )


def test_shards_that_lost_more_members_than_allowed_are_refused_before_training(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [250])
    for row in range(0, 250, 10):
        overwrite(path, header_offset_of_broken(path, row), b"!" * 8)
    with pytest.raises(
        ValueError,
        match=r"found 50 problems .* beside 225 good samples, more than data.max_bad_fraction \(0.05\)",
    ):
        make_reader(tmp_path)


def header_offset_of_broken(path: Path, row: int) -> int:
    """Where the check sum of a row's picture header lies; by the raw bytes, since tarfile stops at the first
    broken one."""
    return path.read_bytes().index(f"0_{row}.png".encode()) + 150
