"""Paths that a command writes to: looked at before the work, and named with their option when it fails."""

import argparse
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from diffmoe_scale.files import find_obstacle

MAY_NOT = "choose a path that you may use, or change its permissions"
NO_SPACE = "free space there, or choose another disk"
OS_ADVICE = {
    errno.EACCES: MAY_NOT,
    errno.EPERM: MAY_NOT,
    errno.EROFS: "its disk is mounted for reading only; choose another",
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.ENOENT: "expected a path that exists",
    errno.ENOTDIR: "one of its folders is a file",
    errno.EISDIR: "expected a file",
    errno.EEXIST: "choose another path, or remove what is there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads to itself",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about an error of the operating system."""


def check_output(option: str, path: Path, *, is_folder: bool = False) -> None:
    """Raises: ValueError with the option's name if nothing can be written there. Leaves nothing behind."""
    obstacle = find_obstacle(path, is_folder=is_folder)
    if obstacle:
        kind = "folder" if is_folder else "file"
        raise ValueError(f"{option}: {path} cannot be written: {obstacle}; choose another {kind}")


def explain_os_error(error: OSError, parser: argparse.ArgumentParser, given: Mapping[str, object]) -> str:
    """One sentence: the option that named the path, the path, what is wrong, what to do; an error of our
    own as it is."""
    reason = error.strerror or str(error)
    advice = f"; {OS_ADVICE[error.errno]}" if error.errno in OS_ADVICE else ""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return f"{reason}{advice}"
    path = os.fsdecode(error.filename)
    named = [(text, option) for text, option in _paths(parser, given) if _belongs(path, text)]
    option = f"{max(named, key=lambda pair: len(pair[0]))[1]}: " if named else ""
    return f"{option}{path}: {reason}{advice}"


def _paths(parser: argparse.ArgumentParser, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The texts of all arguments that may be paths, with the name of the argument."""
    for action in parser._actions:
        value = given.get(action.dest)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | Path) and str(text):
                yield str(text), name_of(action)


def _belongs(path: str, given: str) -> bool:
    """Whether a path is the given one, lies in it, beside it (NAME.unfinished) or on the way to it."""
    path, given = os.path.abspath(path), os.path.abspath(given)
    return path.startswith(given) or given.startswith(path.rstrip("/") + "/")


def name_of(action: argparse.Action) -> str:
    """As a user writes it."""
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
