"""Which code a run is trained by."""

import subprocess
from pathlib import Path

import diffmoe_scale
from diffmoe_scale import __version__

GIT_LIMIT_S = 10
UNKNOWN = "unknown"


def code_version() -> dict[str, str]:
    """`version` of the package, and the `commit` of the repository that it is a part of: with `-dirty` behind
    it where files differ, `unknown` outside of a repository and without git."""
    return {"version": __version__, "commit": commit_of(Path(diffmoe_scale.__file__))}


def commit_of(file: Path) -> str:
    """Of the repository that has `file`. A package that is installed below somebody else's is no part of
    it."""
    if not _git(file.parent, "ls-files", "--error-unmatch", file.name):
        return UNKNOWN
    return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or UNKNOWN


def _git(folder: Path, *words: str) -> str:
    """What git prints; "" if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
