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
from collections.abc import Callable, Sequence
from pathlib import Path

from diffmoe_scale import __version__
from diffmoe_scale.config.check import RunError
from diffmoe_scale.telemetry.log import setup_tool_logging

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. Training adds 75: a signal asked for a checkpoint and the end (start again later)."""
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors of the operating system that another argument mends."""


def command_parser(name: str, description: str, *, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with `--version`. `epilog` is printed as it is, below the arguments: examples."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"diffmoe_scale {__version__}")
    return parser


def user_path(text: str) -> Path:
    """A path argument: `~` is the home folder. Raises: ValueError if it is empty or holds a NUL."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path; expected the name of a file or folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~NAME of a user who does not exist
        raise argparse.ArgumentTypeError(f"{text!r} is no path: {error}") from error


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, do the work, and return the exit code of the process.

    0: done (or what `work` returned). 1: a failure while running. 2: a wrong setting, argument or path.
    130: Ctrl-C. Foreseen errors are one line on stderr without a traceback; an unforeseen one keeps its
    traceback (and Python's exit code 1).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII locale must not end a command
    parsed = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    setup_tool_logging()
    try:
        return work(parsed) or OK
    except BrokenPipeError:
        return _reader_left()
    except (ValueError, *WRONG_PATH) as error:
        return _tell(error, WRONG_USE)
    except (RunError, OSError) as error:
        return _tell(error, FAILED)
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)


def _tell(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _reader_left() -> int:
    """Whoever read our output stopped reading (`| head`): nothing more can be said there."""
    sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115  # the interpreter flushes it at its end
    return FAILED
