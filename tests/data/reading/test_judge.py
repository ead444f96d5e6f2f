import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.ranks  # noqa: F401  # its preloaded imports: a reading process then starts in milliseconds
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.judge import JUDGED_SAMPLES, LOGGED_FAILURES
from tests.data.reading.readers import BROKEN, first_batches, make_reader
from tests.data.samples import all_keys, make_sample, read_batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_skipped_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    reader = make_reader(tmp_path, [20, 20], replaced={"1_3": BROKEN}, workers=workers, caption_dropout=0.0)
    batches = first_batches(reader, 20)
    weights = {
        key: weight
        for batch in batches
        for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True)
    }
    assert weights == {key: float(key != "shard-001.tar/1_3") for key in all_keys([20, 20])}
    assert (
        reader.judge.counts == {"no_picture": 1}
        and reader.judge.bad_samples == 1
        and reader.judge.read_samples == 40
    )
    assert caplog.text.count("shard-001.tar/1_3") == 1 and "it has weight 0" in caplog.text


def test_many_notes_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {f"0_{row}": make_sample(0, row) | {"txt": b"caf\xe9"} for row in range(40)}
    reader = make_reader(tmp_path, [60], replaced=odd)
    first_batches(reader, 30)
    assert reader.judge.counts["not_utf8"] == 40
    (line,) = [record.message for record in caplog.records if "no UTF-8" in record.message]
    assert "shard-000.tar/0_" in line and line.endswith("more of this kind are only counted")


def test_a_json_that_cannot_be_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = {"0_1": {"png": make_sample(0, 1)["png"], "json": b"{broken"}}
    first_batches(make_reader(tmp_path, [4], replaced=broken), 2)
    (line,) = [record for record in caplog.records if "no JSON object" in record.message]
    assert line.levelno == logging.WARNING and "shard-000.tar/0_1" in line.message


def test_of_many_failures_the_first_are_logged_and_all_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = make_reader(
        tmp_path, [60], replaced={f"0_{row}": BROKEN for row in range(40)}, max_bad_fraction=1.0
    )
    first_batches(reader, 30)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert reader.judge.counts["no_picture"] == 40 and len(warnings) == LOGGED_FAILURES
    assert "more of this kind are only counted" in warnings[-1]


def test_a_sample_without_a_caption_is_trained_on_the_empty_one_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = make_reader(
        tmp_path, [4], replaced={"0_1": {"png": make_sample(0, 1)["png"]}}, caption_dropout=0.0
    )
    samples = {
        key: (batch.captions[row], float(batch.weight_B[row]))
        for batch in first_batches(reader, 2)
        for row, key in enumerate(batch.keys)
    }
    assert samples["shard-000.tar/0_1"] == ("", 1.0) and samples["shard-000.tar/0_2"] == (
        "caption 0 2",
        1.0,
    )
    assert (
        reader.judge.counts == {"caption": 1}
        and reader.judge.bad_samples == 0
        and "shard-000.tar/0_1: no caption" in caplog.text
    )


def read_to_the_end(batches: Iterator[Batch], number: int) -> int:
    return sum(len(batch.keys) for batch in itertools.islice(batches, number))


def test_more_bad_samples_than_allowed_stop_the_run(tmp_path: Path) -> None:
    reader = make_reader(
        tmp_path, [100], replaced={f"0_{row}": BROKEN for row in range(7)}, max_bad_fraction=0.06
    )
    batches = read_batches(reader, global_batch=10, micro_batch=10)
    # Judged from the first JUDGED_SAMPLES on: two epochs with 7 % each.
    assert read_to_the_end(batches, JUDGED_SAMPLES // 10 - 1) == JUDGED_SAMPLES - 10
    with pytest.raises(
        RuntimeError, match=r"unusable are 14 of 200 samples.*data\.max_bad_fraction \(0\.06\)"
    ):
        next(batches)


def test_as_many_bad_samples_as_allowed_do_not_stop_the_run(tmp_path: Path) -> None:
    reader = make_reader(
        tmp_path, [100], replaced={f"0_{row}": BROKEN for row in range(7)}, max_bad_fraction=0.07
    )
    batches = read_batches(reader, global_batch=100, micro_batch=100)
    assert read_to_the_end(batches, 4) == 400 and reader.judge.bad_samples == 28


def test_samples_without_captions_are_not_bad(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"]} for row in range(1, 100)}
    reader = make_reader(tmp_path, [100], replaced=replaced, max_bad_fraction=0.0)
    assert read_to_the_end(read_batches(reader, global_batch=100, micro_batch=100), 3) == 300
