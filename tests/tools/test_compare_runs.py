import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any  # lines of JSON

import pytest

from tools import compare_runs

LINES = [
    {
        "step": step,
        "samples": 8 * step,
        "time": 1.0,
        "loss/diffusion": 1.0 / step,
        "moe/threshold/1": [0.5, 0.25],
    }
    for step in (1, 2, 3, 4)
]


def write_run(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def changed(step: int, **values: Any) -> list[dict[str, Any]]:
    return [line | (values if line["step"] == step else {}) for line in LINES]


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, arguments)])
    return compare_runs.main()


@pytest.mark.parametrize(
    "lines, arguments, code, told",
    [
        (LINES, [], 0, "the runs are equal over 4 steps\n"),
        (
            changed(
                3, time=9.0, **{"time/step_s": 2.0, "throughput/images_per_s": 3.0, "memory/peak_gib": 4.0}
            ),
            [],
            0,
            "the runs are equal over 4 steps\n",
        ),
        (
            changed(2, **{"loss/diffusion": 0.5000001}),
            [],
            1,
            "loss/diffusion: 1e-07 absolute, 2e-07 relative, from step 2\nthe runs differ from step 2 on\n",
        ),
        (
            changed(2, **{"loss/diffusion": 0.5000001}),
            ["--tolerance", "1e-6"],
            0,
            "loss/diffusion: 1e-07 absolute, 2e-07 relative, within the tolerance\nthe runs are equal over "
            "4 steps within 1e-06\n",
        ),
        (
            changed(4, **{"moe/threshold/1": [0.5, 0.2]}),
            ["--tolerance", "0.1"],
            1,
            "moe/threshold/1: 0.05 absolute, 0.2 relative, from step 4\nthe runs differ from step 4 on\n",
        ),
        (
            changed(4, **{"moe/threshold/1": [0.5]}),
            [],
            1,
            "moe/threshold/1: inf absolute, inf relative, from step 4\nthe runs differ from step 4 on\n",
        ),
        (
            changed(3, **{"loss/diffusion": "nan"}),
            [],
            1,
            "loss/diffusion: inf absolute, inf relative, from step 3\nthe runs differ from step 3 on\n",
        ),
        (
            changed(1, extra=1.0),
            [],
            1,
            "extra: inf absolute, inf relative, from step 1\nthe runs differ from step 1 on\n",
        ),
        (
            LINES[:2],
            [],
            1,
            "in one of the runs only: 2 steps, the first is 3\nthe runs differ from step 3 on\n",
        ),
    ],
    ids=[
        "equal",
        "clock",
        "last digit",
        "last digit within tolerance",
        "list",
        "length of list",
        "not a number",
        "metric of one",
        "steps of one",
    ],
)
def test_differences_are_told_and_decide_the_exit_code(
    lines: list[dict[str, Any]],
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [write_run(tmp_path / "a", LINES), write_run(tmp_path / "b", lines)]
    for order in (runs, runs[::-1]):
        assert compare(monkeypatch, *order, *arguments) == code
        assert capsys.readouterr().out == told


def test_two_runs_without_a_number_at_one_place_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = changed(3, **{"loss/diffusion": "nan"})
    assert compare(monkeypatch, write_run(tmp_path / "a", lines), write_run(tmp_path / "b", lines)) == 0


def test_a_whole_number_beyond_what_floats_hold_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = changed(3, **{"loss/diffusion": 10**400})
    assert compare(monkeypatch, write_run(tmp_path / "a", LINES), write_run(tmp_path / "b", lines)) == 1
    assert "loss/diffusion: inf absolute, inf relative, from step 3" in capsys.readouterr().out


def test_missing_run_and_empty_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, empty = write_run(tmp_path / "good", LINES), write_run(tmp_path / "empty", [])
    assert compare(monkeypatch, good, tmp_path / "nowhere") == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/nowhere does not exist; expected a run directory with metrics.jsonl, or "
        "such a file\n"
    )
    assert compare(monkeypatch, empty, good) == 2
    assert (
        capsys.readouterr().err
        == f"error: {empty}/metrics.jsonl has no line of a step; wait for the run's first log step\n"
    )


def test_tool_starts_from_anywhere(tmp_path: Path) -> None:
    tool = Path(compare_runs.__file__)
    result = subprocess.run(
        [sys.executable, str(tool), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0 and "--tolerance" in result.stdout
