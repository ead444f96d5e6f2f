import argparse
import os
import subprocess
import sys

import pytest

from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.config.check import RunError


def raises(error):
    def work(parsed):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("run.steps is 0"), 2),
        (FileNotFoundError(2, "No such file or directory", "x.tar"), 2),
        (RunError("no capacity found"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_foreseen_error_is_one_line_and_an_exit_code(error, code, capsys):
    assert run_command(command_parser("x", "y"), raises(error), []) == code
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1


def test_an_unforeseen_error_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_command(command_parser("x", "y"), raises(KeyError("z")), [])


def test_work_decides_the_exit_code_of_a_good_end():
    assert run_command(command_parser("x", "y"), lambda parsed: 1, []) == 1
    assert run_command(command_parser("x", "y"), lambda parsed: None, []) == 0


def test_a_shortened_option_is_refused(capsys):
    parser = command_parser("x", "y")
    parser.add_argument("--checkpoint")
    with pytest.raises(SystemExit) as exit:
        run_command(parser, lambda parsed: None, ["--check", "a"])
    assert exit.value.code == 2


def test_home_folder_and_impossible_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(user_path("~/runs")) == "/somewhere/runs"
    for text in ("", "  ", "a\0b", "~nobody_of_that_name/x"):
        with pytest.raises(argparse.ArgumentTypeError):
            user_path(text)


def test_a_reader_who_leaves_and_an_ascii_locale_end_nothing_with_a_traceback():
    code = (
        "import sys; from diffmoe_scale.cli.command import *\n"
        "def work(parsed):\n    print('é')\n    for _ in range(100000): print('x')\n"
        "sys.exit(run_command(command_parser('x', 'y'), work, []))"
    )
    command = f'{sys.executable} -c "$CODE" | head -1'
    result = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        env={
            "CODE": code,
            "LC_ALL": "C",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONIOENCODING": "ascii",
        },
    )
    assert result.stderr == "" and result.stdout == "\\xe9\n"


def describe(section):
    if section not in ("", "run"):
        raise ValueError(f"--help {section}: there is no such section")
    return f" settings of {section or 'all'}"


@pytest.mark.parametrize(
    ("words", "code", "shown", "hidden"),
    [
        (["--help"], 0, "settings of all", "settings of run"),
        (["--help", "run"], 0, "settings of run", "usage"),
        (["--help", "rum"], 2, "error: --help rum: there is no such section", "usage"),
    ],
)
def test_help_tells_of_all_settings_or_of_one_section(words, code, shown, hidden, capsys):
    parser = command_parser("x", "y", describe_settings=describe)
    parser.add_argument("--config", required=True)
    found: object
    try:
        found = run_command(parser, lambda parsed: None, words)
    except SystemExit as end:
        found = end.code
    captured = capsys.readouterr()
    assert found == code
    assert shown in captured.out + captured.err and hidden not in captured.out + captured.err


def test_output_that_cannot_be_written_is_one_line_and_exit_code_1():
    code = (
        "import sys; from diffmoe_scale.cli.command import *\n"
        "sys.exit(run_command(command_parser('x', 'y'), lambda parsed: print('x'), []))"
    )
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert (result.returncode, result.stderr) == (
        1,
        "error: No space left on device; free space there, or choose another disk\n",
    )
