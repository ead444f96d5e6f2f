"""The report by the command line."""

from pathlib import Path

import pytest

from tools import report


def test_a_page_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n" and (tmp_path / "report.html").is_file()


def test_a_folder_that_is_not_there_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "none")]) == 2
    assert "none is no directory; expected a run directory" in capsys.readouterr().err


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"")
    assert report.main([str(tmp_path)]) == 2
    assert "is no run: it holds none of checkpoints, config.yaml" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]
