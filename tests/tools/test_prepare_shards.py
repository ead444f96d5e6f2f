import subprocess
import sys
from pathlib import Path

import pytest

from tests.prepare.folders import add_picture, read_samples
from tools import prepare_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        add_picture(tmp_path / "photos", f"{number}.png", caption=f"picture {number}")
    return tmp_path / "photos"


def test_it_says_what_it_wrote_and_what_to_do_next(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").touch()
    out = tmp_path / "50%d {0}: [x]"
    command = ["--input", str(photos), "--output", str(out), "--validation", "0.4"]
    assert prepare_shards.main(command) == 0
    printed = capsys.readouterr().out
    assert len(read_samples(out)) + len(read_samples(out, "validation-*")) == 3
    assert "left out 1 of 4 images (1 broken)" in printed and f"of each kind: {out}/shards.json" in printed
    assert "tools/inspect_data.py --input" in printed and "data.validation=[" in printed
    assert prepare_shards.main(command) == 0
    assert "these shards are there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "missing"], "--input missing does not exist"),
        (["--input", "~", "--output", "~"], "lies in --output"),
        (["--input", "photos", "--validation", "nan"], "--validation is nan"),
    ],
)
def test_what_is_wrong_is_one_line(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_shards.main(["--output", "out", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_the_command_runs_from_anywhere_with_the_package_installed(photos: Path, tmp_path: Path) -> None:
    tool = str(ROOT / "tools" / "prepare_shards.py")
    done = subprocess.run(
        [sys.executable, tool, "--input", "photos", "--output", "out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    # No progress bar without a terminal.
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[0] == "out: 3 training and 0 validation samples, 0 without a caption"
