"""What a set was made from: size and time of every file that was read, so that a change is seen and named."""

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from diffmoe_scale.files import replace_file
from diffmoe_scale.unicode import clean_name

FILE = "sources.json.gz"
NAMED_FILES = 3


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
            found = json.loads(gzip.decompress((folder / FILE).read_bytes()))
        except (OSError, EOFError, ValueError):
            return None
        return cls(found) if isinstance(found, dict) else None

    def differences(self, other: "Sources") -> str:
        """How `other` differs from these: counts and some names."""
        kinds = {
            "changed": [
                name for name, state in other.states.items() if self.states.get(name, state) != state
            ],
            "new": [name for name in other.states if name not in self.states],
            "gone": [name for name in self.states if name not in other.states],
        }
        return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


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
