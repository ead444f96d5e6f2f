import json
import logging
from pathlib import Path

import pytest

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.train.start import check_start, missing_folders, remove_start


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def save(directory: RunDirectory, step: int) -> None:
    (directory.checkpoints / f"step_{step:08d}").mkdir(parents=True)
    directory.saved.write_text(json.dumps({"step": step}), encoding="utf-8")


def log_steps(directory: RunDirectory, last: int) -> None:
    lines = [json.dumps({"step": step, "samples": step, "time": 0}) for step in range(1, last + 1)]
    directory.metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_new_directory_begins_and_may_begin_again_before_its_first_checkpoint(
    directory: RunDirectory,
) -> None:
    check_start(directory)
    assert json.loads(directory.saved.read_bytes()) == {"step": 0}
    log_steps(directory, 1000)  # killed while its first checkpoint was written
    check_start(directory)


def test_metrics_of_a_start_without_a_checkpoint_are_kept_aside(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        check_start(directory)
        log_steps(directory, number)
    check_start(directory)
    directory.metrics.write_bytes(b"damaged")
    check_start(directory)
    assert not directory.metrics.exists()
    kept = {path.name: len(read_metrics(path)) for path in directory.path.glob("metrics*")}
    assert kept == {
        "metrics_of_start_1.jsonl": 1,
        "metrics_of_start_2.jsonl": 2,
        "metrics_of_start_3.jsonl": 0,
    }
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "begins anew at step 1; the metrics of the earlier start are kept in metrics_of_start_1"
        in warnings[0]
    )
    directory.metrics.write_bytes(b"")
    check_start(directory)
    assert len(list(directory.path.glob("metrics*"))) == 4, "nothing was logged, nothing is kept"


@pytest.mark.parametrize("loss", ["emptied", "removed", "dead link"])
def test_lost_checkpoints_are_no_new_beginning(directory: RunDirectory, loss: str) -> None:
    save(directory, 6)
    directory.tokenizer.write_bytes(b"of these checkpoints")
    directory.checkpoints.rename(directory.path / "away")
    if loss == "emptied":
        directory.checkpoints.mkdir()
    elif loss == "dead link":
        directory.checkpoints.symlink_to("/no/such/mount")
    with pytest.raises(
        ValueError, match=r"trained to step 6 at least, but .*checkpoints holds no checkpoint: put"
    ):
        check_start(directory)
    assert directory.tokenizer.exists()


@pytest.mark.parametrize(("last", "is_refused"), [(9, False), (10, True)])
def test_lost_checkpoints_of_older_versions_are_known_by_the_metrics(
    directory: RunDirectory, last: int, is_refused: bool
) -> None:
    directory.path.mkdir()
    directory.config.write_text("checkpoint: {every: 10}\n", encoding="utf-8")
    log_steps(directory, last)
    if is_refused:
        with pytest.raises(ValueError, match="trained to step 10 at least"):
            check_start(directory)
    else:
        check_start(directory)


def test_tokenizer_without_a_checkpoint_is_made_anew(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    check_start(directory)
    directory.tokenizer.write_bytes(b"of other captions")
    with caplog.at_level(logging.INFO):
        check_start(directory)
    assert not directory.tokenizer.exists() and "is made anew" in caplog.text
    save(directory, 6)
    directory.tokenizer.write_bytes(b"of these checkpoints")
    check_start(directory)
    assert directory.tokenizer.exists()


def test_newest_checkpoint_that_is_gone_is_said(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    save(directory, 6)
    directory.saved.write_text(json.dumps({"step": 8}), encoding="utf-8")
    check_start(directory)
    assert "the checkpoint of step 8 is gone" in caplog.text and "of step 6" in caplog.text


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"3", b'{"step": -1}', b'{"step": "6"}', b'{"step": true}', b"\xff", b"[" * 10**5],
)
def test_damaged_record_is_a_sentence(directory: RunDirectory, data: bytes) -> None:
    directory.path.mkdir()
    directory.saved.write_bytes(data)
    with pytest.raises(ValueError, match=r"saved\.json is damaged .*; expected"):
        check_start(directory)


def test_a_failed_start_removes_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "deep" / "first")
    made = missing_folders(directory.path)
    assert made == [directory.path, tmp_path / "runs" / "deep", tmp_path / "runs"]
    check_start(directory)
    for path in (directory.log, directory.lock, directory.config, directory.tokenizer, directory.shards):
        path.touch()
    (tmp_path / "runs" / "another").mkdir()
    remove_start(directory, made)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "another"]
    remove_start(directory, made)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "notes.txt"])
def test_a_failed_start_leaves_a_directory_that_holds_more_as_it_is(
    directory: RunDirectory, name: str
) -> None:
    made = missing_folders(directory.path)
    check_start(directory)
    (directory.path / name).touch()
    before = sorted(directory.path.iterdir())
    remove_start(directory, made)
    assert sorted(directory.path.iterdir()) == before
    (directory.path / name).unlink()
    remove_start(directory, [])
    assert directory.saved.exists(), "the directory was there before"
