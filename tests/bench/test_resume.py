from pathlib import Path

import pytest

from diffmoe_scale.bench.options import ResumeOptions
from diffmoe_scale.bench.resume import STARTS, bench_resume, make_data_set, time_start


def test_a_start_deep_in_the_epoch_reads_the_samples_of_that_place(tmp_path: Path) -> None:
    make_data_set(tmp_path, shards=3, samples=200)
    for share in (0.0, 0.5):
        found = time_start(tmp_path, share, shuffle_block=64)  # checks the first index itself
        assert found["open_s"] > 0 and found["batch_s"] > 0


def test_every_start_is_timed_and_an_error_of_its_process_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmoe_scale.bench.resume.STARTS", STARTS[:1])
    (start,) = bench_resume(ResumeOptions(shards=2, samples=200, folder=tmp_path))
    assert start["start_at"] == 0 and start["open_s"] > 0 and start["batch_s"] > 0
    (tmp_path / "shard-00001.tar").write_bytes(b"")
    (tmp_path / "shard-00000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard-0000"):
        bench_resume(ResumeOptions(shards=2, samples=200, folder=tmp_path))
