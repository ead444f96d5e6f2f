"""The wrapper of every `main()`: exit codes, errors as one line, Ctrl-C, logging, `--version`.

A command is a parser and a function of the parsed arguments:

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = command_parser("report", "Write RUN/report.html.")
        parser.add_argument("run", type=user_path, help="run directory")
        return run_command(parser, work, arguments)

    if __name__ == "__main__":
        sys.exit(main())

`work` imports torch and other slow packages itself, so that `--help` and wrong arguments answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # argparse hands values of any type to an action

from diffmoe_scale import __version__
from diffmoe_scale.cli.output import check_output, explain_os_error, name_of
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.section import expand_home
from diffmoe_scale.telemetry.log import setup_tool_logging

OK, FAILED, WRONG_USE, TRY_AGAIN, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes. TRY_AGAIN (sysexits.h's EX_TEMPFAIL) is of training: a signal asked for a checkpoint and the
end, and the same command continues."""
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors of the operating system that another argument mends."""


def command_parser(
    name: str,
    description: str,
    *,
    epilog: str = "",
    describe_settings: Callable[[str], str] | None = None,
) -> argparse.ArgumentParser:
    """A parser with `--version`. `epilog` is printed as it is, below the arguments: examples.

    `describe_settings` gives the text about one section of the settings, one setting, or all for "", and
    raises ValueError for an unknown one. With it `--help` prints all, and `--help SECTION` that one alone.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=describe_settings is None,
    )
    if describe_settings is not None:
        parser.add_argument("-h", "--help", action=_SettingsHelp, describe_settings=describe_settings)
    parser.add_argument("--version", action="version", version=f"diffmoe_scale {__version__}")
    return parser


def user_path(text: str) -> Path:
    """A path argument: `~` is the home folder. Raises: ArgumentTypeError if it is empty or holds a NUL."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path; expected the name of a file or folder")
    try:
        return Path(expand_home(text, "it"))
    except ValueError as error:  # ~NAME of a user who does not exist
        raise argparse.ArgumentTypeError(str(error)) from error


def output_file(text: str) -> Path:
    """The type of an argument that names a file to write: before the work, `run_command` looks whether it
    can."""
    return user_path(text)


def output_folder(text: str) -> Path:
    """The same of a folder."""
    return user_path(text)


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, do the work, and return the exit code of the process.

    0: done (or what `work` returned). 1: a failure while running. 2: a wrong setting, argument or path.
    130: Ctrl-C. A path that cannot be written is refused before the work. Foreseen errors are one line on
    stderr without a traceback; an unforeseen one keeps its traceback (and Python's exit code 1).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII locale must not end a command
    setup_tool_logging()
    given: dict[str, object] = {}
    try:
        parsed = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
        given |= vars(parsed)
        _check_outputs(parser, given)
        code = work(parsed) or OK
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader who left, or a full disk, is noticed before the interpreter's end
        return code
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        code = WRONG_USE if isinstance(error, WRONG_PATH) else FAILED
        _tell(explain_os_error(error, parser, given), code)
        _discard_output()
        return code
    except (ValueError, RunError) as error:
        return _tell(error, WRONG_USE if isinstance(error, ValueError) else FAILED)
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)


def _check_outputs(parser: argparse.ArgumentParser, given: Mapping[str, object]) -> None:
    """Raises: ValueError for an argument of the types `output_file` and `output_folder` that cannot be
    written."""
    for action in parser._actions:  # argparse has no public list
        path = given.get(action.dest)
        if action.type in (output_file, output_folder) and isinstance(path, Path):
            check_output(name_of(action), path, is_folder=action.type is output_folder)


def _tell(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _reader_left() -> int:
    """The reader of our output has ended (`| head`): nothing more can be written there."""
    # The interpreter flushes it at its end.
    sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115
    return FAILED


def _discard_output() -> None:
    """Leave out what stdout cannot take (a full disk): the interpreter would fail on it again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _reader_left()


class _SettingsHelp(argparse.Action):
    """`--help [SECTION]`."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        describe_settings: Callable[[str], str],
    ) -> None:
        super().__init__(
            option_strings,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            nargs="?",
            const="",
            metavar="SECTION",
            help="print this help and end; with a SECTION, such as optimizer, its settings alone; with a "
            "setting, such as run.steps, that one",
        )
        self.describe_settings = describe_settings

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        section = values if isinstance(values, str) else ""
        settings = self.describe_settings(section)
        print(settings if section else f"{parser.format_help()}\nsettings (section.key=default):{settings}")
        parser.exit()
