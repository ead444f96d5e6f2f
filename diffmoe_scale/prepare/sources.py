"""What a set was made from: size and time of every file that was read, so that a change is seen and named."""

import ast
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.unicode import clean_name

FILE = "sources.json.gz"
NAMED_FILES = 3
UNUSED, UNUSED_COUNT = "not used, ", ", count"
"""Beginning of the names of what was found and not used, by reason: its state is the list of names as text;
and the end of the name that has its count."""


@dataclass(frozen=True)
class Sources:
    """State by name: size and time of a file, or what else tells that it has changed."""

    states: Mapping[str, str]

    def describe(self) -> dict[str, object]:
        """What goes into a manifest: equal for equal sources."""
        digest = blake2b(digest_size=16)
        for name, state in sorted(self.states.items()):
            digest.update(f"{name}\0{state}\0".encode("utf-8", "surrogatepass"))
        return {"files": len(self.states), "digest": digest.hexdigest()}

    def save(self, folder: Path) -> None:
        # Sorted and without a time: equal sources give equal bytes.
        text = json.dumps(dict(sorted(self.states.items())), indent=0)
        replace_file(folder / FILE, gzip.compress(text.encode(), mtime=0))

    @classmethod
    def load(cls, folder: Path) -> "Sources | None":
        """Those that were saved in a folder; None where there are none that can be read."""
        try:
            found = parse_json(gzip.decompress((folder / FILE).read_bytes()))
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        return cls(found) if isinstance(found, dict) else None

    def differences(self, other: "Sources") -> str:
        """How `other` differs from these: counts and some names."""
        old, new = _of_files(self.states), _of_files(other.states)
        kinds = {
            "changed": [name for name, state in new.items() if old.get(name, state) != state],
            "new": [name for name in new if name not in old],
            "gone": [name for name in old if name not in new],
        }
        parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
        return "; ".join(parts + _unused_differences(self.states, other.states))


def _of_files(states: Mapping[str, str]) -> dict[str, str]:
    return {name: state for name, state in states.items() if not name.startswith(UNUSED)}


def _unused_differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """How what is not used differs, by reason: names where they were kept, else counts."""
    reasons = dict.fromkeys(
        name.removeprefix(UNUSED)
        for name in (*new, *old)
        if name.startswith(UNUSED) and not name.endswith(UNUSED_COUNT)
    )
    parts = []
    for reason in reasons:
        before, now = (_names_in(states.get(f"{UNUSED}{reason}", "[]")) for states in (old, new))
        added, lost = ([name for name in a if name not in b] for a, b in ((now, before), (before, now)))
        parts += [f"{len(added)} new that cannot be used ({reason}: {_some(added)})"] if added else []
        parts += [f"{len(lost)} gone that could not be used ({reason}: {_some(lost)})"] if lost else []
        counts = [states.get(f"{UNUSED}{reason}{UNUSED_COUNT}", "0") for states in (old, new)]
        if not added and not lost and counts[0] != counts[1]:
            parts.append(f"{reason}: {counts[0]} there, {counts[1]} now")
    return parts


def _names_in(state: str) -> list[str]:
    """The names of a list that was written as text; none where it cannot be read."""
    try:
        found = ast.literal_eval(state)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def _some(names: list[str]) -> str:
    shown = ", ".join(clean_name(name) for name in sorted(names)[:NAMED_FILES])
    return shown + (", ..." if len(names) > NAMED_FILES else "")


def state_of(path: Path) -> str:
    """Size and time of change of a file; "missing" for one that is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        # ValueError: a path with a NUL.
        return "missing"
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


def sources_of(files: Iterable[tuple[str, Path]]) -> Sources:
    """Sources of names with their paths; each path is looked at once."""
    known: dict[Path, str] = {}
    states = {}
    for name, path in files:
        if path not in known:
            known[path] = state_of(path)
        states[name] = known[path]
    return Sources(states)
