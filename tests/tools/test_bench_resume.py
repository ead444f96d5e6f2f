from pathlib import Path

from tools import bench_resume


def test_a_start_deep_in_the_epoch_reads_the_samples_of_that_place(tmp_path: Path) -> None:
    bench_resume.make_data_set(tmp_path, shards=3, samples=200)
    for share in (0.0, 0.5):
        found = bench_resume.time_start(tmp_path, share, shuffle_block=64)  # checks the first index itself
        assert found["open_s"] > 0 and found["batch_s"] > 0
