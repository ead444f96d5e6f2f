"""What cannot be written is answered with the option's name, before the work and after it."""

import argparse
import errno
import os
import re
from pathlib import Path

import pytest

from diffmoe_scale.__main__ import main as run_any
from diffmoe_scale.cli.command import command_parser, output_file, output_folder, run_command
from diffmoe_scale.cli.output import check_output

ROOT = Path(__file__).resolve().parents[2]


def parser_of(kind: object) -> argparse.ArgumentParser:
    parser = command_parser("x", "y")
    parser.add_argument("--output", type=kind)  # type: ignore[arg-type]  # both types of outputs
    parser.add_argument("--input", type=Path)
    parser.add_argument("words", nargs="*", metavar="key.sub=value")
    return parser


def work_that_must_not_begin(parsed: argparse.Namespace) -> None:
    pytest.fail("it began")


@pytest.mark.parametrize(
    "kind, name, obstacle",
    [
        (output_file, "file/x.html", "file is a file; choose another file"),
        (output_file, "folder", "folder is a folder"),
        (output_file, "/proc/x", "/proc cannot be written to"),
        (output_folder, "file", "file is a file; choose another folder"),
        (output_folder, "file/x", "file is a file"),
        (output_folder, "/proc/x/y", "/proc cannot be written to"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: object,
    name: str,
    obstacle: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    assert run_command(parser_of(kind), work_that_must_not_begin, ["--output", name]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: --output: {name} cannot be written: ") and obstacle in told


@pytest.mark.parametrize(
    "number, path, sentence, code",
    [
        (errno.ENOSPC, "out/a.tar", "--output: out/a.tar: No space left on device; free space there", 1),
        (errno.EACCES, "out.unfinished/a", "--output: out.unfinished/a: Permission denied; choose a path", 2),
        (errno.EROFS, "data/in", "--input: data/in: Read-only file system; its disk is mounted for", 1),
        (errno.ENOENT, "data", "--input: data: No such file or directory; expected a path that exists", 2),
        (errno.EISDIR, "data/in", "--input: data/in: Is a directory; expected a file", 2),
        (errno.ENOTDIR, "data/in/a", "--input: data/in/a: Not a directory; one of its folders is a file", 2),
        (errno.EEXIST, "out", "--output: out: File exists; choose another path", 2),
        (errno.ENOENT, "run.steps=3", "key.sub=value: run.steps=3: No such file or directory", 2),
        (errno.ENOSPC, 3, "No space left on device; free space there", 1),
        (errno.EIO, "/elsewhere", "/elsewhere: Input/output error", 1),
        (errno.ENOSPC, None, "No space left on device; free space there", 1),
    ],
)
def test_an_error_of_the_system_names_the_option_the_path_and_what_to_do(
    capsys: pytest.CaptureFixture[str], number: int, path: str | int | None, sentence: str, code: int
) -> None:
    def fail(parsed: argparse.Namespace) -> None:
        del parsed.input  # as commands do that hand the rest on
        raise OSError(number, os.strerror(number), path)

    arguments = ["--output", "out", "--input", "data/in", "run.steps=3"]
    assert run_command(parser_of(output_folder), fail, arguments) == code
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1
    assert "Errno" not in told


@pytest.mark.parametrize("name, told_of", [("out/in/a", "--input: "), ("out/b", "--output: "), ("c", "")])
def test_an_error_names_the_argument_nearest_to_its_path(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told_of: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = parser_of(output_folder)
    parser.add_argument("--title", default="")
    path = str(tmp_path / name)

    def fail(parsed: argparse.Namespace) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    run_command(parser, fail, ["--output", "out", "--input", "out/in"])
    assert capsys.readouterr().err == f"error: {told_of}{path}: Input/output error\n"


def test_what_can_be_written_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    check_output("--html", tmp_path / "page.html")
    check_output("--output", tmp_path / "new" / "folder", is_folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


OUTPUTS = {
    "prepare_shards": ["--input", ".", "--output", "file/x"],
    "make_scenes": ["--output", "file/x"],
    "cache_features": ["--config", "file", "--input", "x.tar", "--output", "file/x"],
    "inspect_data": ["--input", "x.tar", "--html", "file/x"],
    "bench_layer": ["--output", "file/x"],
    "bench_micro_step": ["--output", "file/x"],
    "gpu_report": ["--output", "file/x"],
    "gpu_smoke": ["--output", "file/x"],
    "bench_step": ["--output", "file/x"],
    "bench_data": ["--output", "file/x"],
    "bench_checkpoint": ["--output", "file/x"],
    "bench_resume": ["--output", "file/x"],
    "bench_telemetry": ["--output", "file/x"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_command_refuses_its_output_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as end:
        run_any([name, *OUTPUTS[name]])
    told = capsys.readouterr().err
    assert end.value.code == 2 and "file/x cannot be written: file is a file" in told
    assert told.startswith(f"error: {OUTPUTS[name][-2]}: ") and told.count("\n") == 1


def test_no_command_takes_an_output_as_any_path() -> None:
    """sample does: whether it is a file or a folder goes by its name."""
    files = [*(ROOT / "diffmoe_scale").glob("*.py"), *(ROOT / "diffmoe_scale").glob("*/__main__.py")]
    files += (ROOT / "tools").glob("*.py")
    pattern = r"\"--(output|html|folder)\",\s*type=(?!output_file|output_folder)"
    found = [path.name for path in files if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert found == ["sample.py"]
