"""The study by the command line; its rows are tested in tests/study."""

from pathlib import Path

import pytest

from tests.study.studies import write_study
from tools import study


def test_plan_list_and_page_need_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", str(write_study(tmp_path))]
    assert study.main([*command, "--dry-run"]) == 0
    assert "6 rows (3 variants x 2 seeds), 6 to do" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()
    assert study.main([*command, "--list", "--only", "dense"]) == 0
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        "dense seed 0",
        "dense seed 1",
    ]
    assert study.main([*command, "--report"]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'study' / 'report.html'}\n")


@pytest.mark.parametrize(
    "words",
    [["--only", "none"], ["--seed", "9"], ["study.none=1"], ["run.none=1"], ["study.output=/dev/null/x"]],
)
def test_wrong_use_is_exit_2(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--config", str(write_study(tmp_path)), "--dry-run", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
