"""Where a text of the settings came from: a command may be run only if the user named it."""

import re
from typing import Any  # YAML trees before validation

FOREIGN = "of-a-run:"
"""Put before patterns of shards that a run's own config.yaml holds and that may stand for a command."""
MAY_BE_COMMAND = re.compile(r"pipe:|\{.*:|:.*\{", re.DOTALL)
"""Braces can write `pipe:`, too: {p,q}ipe:COMMAND."""


def mark_foreign(tree: dict[str, Any]) -> None:
    """Mark the patterns of `data.train` and `data.validation` of a file that may come from someone else, in
    place. Whoever reads shards refuses to run a command of a marked one."""
    data = tree.get("data")
    if isinstance(data, dict):
        data |= {key: _marked(data[key]) for key in ("train", "validation") if key in data}


def split_foreign(pattern: str) -> tuple[bool, str]:
    """Whether a pattern was marked, and the pattern as it was written."""
    return pattern.startswith(FOREIGN), pattern.removeprefix(FOREIGN)


def _marked(value: Any) -> Any:
    if isinstance(value, list):
        return [_marked(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _marked(entry) for key, entry in value.items()}
    return f"{FOREIGN}{value}" if isinstance(value, str) and MAY_BE_COMMAND.search(value) else value
