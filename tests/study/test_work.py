"""Several rows at once, with processes that are stand-ins: order, failures, stops, resumes."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.lock import hold
from diffmoe_scale.study import work
from diffmoe_scale.study.commands import LAST, TRAINING
from diffmoe_scale.study.cost import Cost
from diffmoe_scale.study.record import read_row
from diffmoe_scale.study.variants import Row, make_rows, make_variants
from tests.study.studies import result_of, small_study


class Stage:
    """Stands for the processes: what was started, and what each does."""

    def __init__(self, code: Callable[[str], str]) -> None:
        self.code = code
        self.started: list[tuple[str, str]] = []
        self.running: list[subprocess.Popen[bytes]] = []
        self.most = 0

    def __call__(
        self, words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        name = Path(words[-1]).name
        self.started.append((name.split("-")[0], name.split(".")[1]))
        process = subprocess.Popen([sys.executable, "-S", "-c", self.code(name)], stdout=log, stderr=log)
        self.running = [other for other in self.running if other.poll() is None] + [process]
        self.most = max(self.most, len(self.running))
        return process


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Of seed 0; their numbers are there whenever their processes have ended."""
    config = small_study(tmp_path)
    found = [row for row in make_rows(config, make_variants(config)) if row.seed == 0]
    checkpoint = lambda row, stage: [row.run] if stage == LAST else []  # noqa: E731
    monkeypatch.setattr("diffmoe_scale.study.commands.checkpoints_to_score", checkpoint)
    monkeypatch.setattr(work, "read_losses", lambda row: ([(20, 0.5)], []))
    monkeypatch.setattr(work, "read_scores", lambda row: result_of(row, loss=0.5, score=0.5).scores)
    return found


def do(rows: list[Row], stage: Stage, *, is_stopped: Callable[[], bool] = lambda: False) -> dict[str, str]:
    costs = {row.variant.name: Cost(1e6, 3e6) for row in rows}
    return work.work_on(rows, costs, at_once=2, report=lambda: None, is_stopped=is_stopped, start=stage)


def test_rows_work_side_by_side_and_a_shared_training_waits_for_the_other(rows: list[Row]) -> None:
    stage = Stage(lambda name: "import time; time.sleep(0.3)")
    assert do(rows, stage) == {}
    assert stage.most == 2
    assert ("dense", TRAINING) in stage.started
    # The third row trains as the first did, after it.
    assert stage.started[-1] == ("static", LAST) and stage.started.count(("diffmoe", TRAINING)) == 2
    results = [read_row(row) for row in rows]
    assert [result.loss for result in results if result is not None] == [0.5] * 3
    assert results[0] is not None and results[0].seconds[TRAINING] > 0.29
    assert "diffmoe_scale.pretrain" in results[0].commands[0]


def test_a_row_that_fails_is_named_with_its_last_words_and_the_others_are_made(rows: list[Row]) -> None:
    def code(name: str) -> str:
        return "print('error: no shards'); raise SystemExit(2)" if "dense" in name else ""

    failures = do(rows, Stage(code))
    assert list(failures) == [rows[1].name]
    assert failures[rows[1].name].startswith("training ended with 2: error: no shards (")
    assert [read_row(row) is None for row in rows] == [False, True, False]


def test_a_stop_ends_the_processes_and_the_next_call_goes_on(rows: list[Row]) -> None:
    stage = Stage(lambda name: "import time; time.sleep(60)")
    assert do(rows, stage, is_stopped=lambda: len(stage.started) == 2) == {}
    assert all(process.returncode == -15 for process in stage.running)
    assert [read_row(row) for row in rows] == [None] * 3
    assert do(rows, Stage(lambda name: "")) == {}
    assert all(read_row(row) for row in rows)


def test_a_row_file_that_is_damaged_is_a_sentence(rows: list[Row]) -> None:
    do(rows[:1], Stage(lambda name: ""))
    path = Path(rows[0].study.output) / "rows" / f"{rows[0].name}.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no row of a study .* remove it and run again"):
        read_row(rows[0])


def test_a_process_that_says_nothing_is_not_given_the_words_of_an_earlier_one(rows: list[Row]) -> None:
    rows[0].log.parent.mkdir(parents=True)
    rows[0].log.write_text("error: the disk is full\n", encoding="utf-8")
    failures = do(rows[:1], Stage(lambda name: "raise SystemExit(9)"))
    assert failures[rows[0].name].startswith("training ended with 9: it printed nothing (")


def test_a_training_waits_for_the_process_that_holds_its_run(rows: list[Row]) -> None:
    stage = Stage(lambda name: "")
    lock = hold(RunDirectory(rows[0].run).lock, setting="run.directory", work="trains")
    assert lock is not None
    began = time.monotonic()
    with lock:
        assert do(rows[:1], stage, is_stopped=lambda: time.monotonic() > began + 0.7) == {}
    assert stage.started == [] and read_row(rows[0]) is None
    assert do(rows[:1], stage) == {} and read_row(rows[0]) is not None
