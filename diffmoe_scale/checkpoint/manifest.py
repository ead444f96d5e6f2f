"""The manifest of a checkpoint: what it holds, check sums of its files, what wrote it. It is written last."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any  # JSON trees

SCHEMA = 1
MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step_(\d{8,})")
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. `samples` is the position in the data, and `samples_by_bucket` where there are
    buckets; `optimizer_steps` leaves skipped steps out."""

    step: int
    samples: int
    optimizer_steps: int
    samples_by_bucket: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, int] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    """State of train.guard: usual losses, bad steps and rollbacks so far."""
    shapes: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    checksum: str = ""
    """Of all other fields; made when the manifest is written."""


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    paths = folder.glob("step_*") if folder.is_dir() else []
    complete = [path for path in paths if STEP_FOLDER.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step_")))


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises: ValueError if the folder is no complete checkpoint, its manifest is damaged, or of another
    schema."""
    try:
        tree = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} is no complete checkpoint: {MANIFEST} cannot be read ({error})"
        ) from error
    # Early manifests have no check sum.
    if "checksum" in tree and tree["checksum"] != _manifest_checksum(tree):
        raise ValueError(f"{MANIFEST} of {checkpoint} has another check sum than when it was written")
    if tree.get("schema") != SCHEMA:
        raise ValueError(f"{checkpoint} has schema {tree.get('schema')}; this version reads schema {SCHEMA}")
    try:
        return Manifest(**tree)
    except TypeError as error:
        raise ValueError(
            f"{MANIFEST} of {checkpoint} has other fields than this version writes ({error})"
        ) from error


def find_damage(checkpoint: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """What is wrong with the files `names` of a checkpoint; each is read to its end."""
    problems = []
    for name in names:
        path, expected = checkpoint / name, manifest.files[name]
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != expected["size"]:
            problems.append(f"{name} has {size} bytes instead of {expected['size']}")
        elif describe_file(path) != expected:
            problems.append(f"{name} has another check sum than when it was written")
    return problems


def write_manifest(folder: Path, manifest: Manifest) -> None:
    tree = asdict(manifest)
    tree["checksum"] = _manifest_checksum(tree)
    with (folder / MANIFEST).open("w") as file:
        json.dump(tree, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def describe_file(path: Path) -> dict[str, Any]:
    """Size and check sum."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def check_model(
    checkpoint: Path,
    manifest: Manifest,
    shapes: Mapping[str, list[int]],
    settings: Mapping[str, Any],
    *,
    held: Mapping[str, list[int]] | None = None,
) -> None:
    """Raises: ValueError unless the checkpoint holds exactly tensors of these names and shapes, made with
    these settings.

    Settings too: heads, objective or gate can change what weights mean and leave every shape as it is.
    """
    held = manifest.shapes if held is None else held
    wrong = [
        f"{name} is {held.get(name, 'missing')} there and {shapes.get(name, 'missing')} here"
        for name in sorted({*held, *shapes})
        if held.get(name) != shapes.get(name)
    ]
    changed = [
        f"{section}.{key} was {before!r}, is {settings.get(section, {}).get(key)!r}"
        for section, entries in manifest.settings.items()
        for key, before in entries.items()
        if settings.get(section, {}).get(key) != before
    ]
    if not wrong and not changed:
        return
    tensors = (
        f"{len(wrong)} tensors differ, such as {'; '.join(wrong[:NAMED])}"
        if wrong
        else "all tensors have the same shapes"
    )
    raise ValueError(
        f"checkpoint {checkpoint} is of another model: {tensors}. "
        f"Settings that differ: {'; '.join(changed) or 'none'}. Restore them, or choose another run.directory"
    )


def _manifest_checksum(tree: Mapping[str, Any]) -> str:
    others = {name: value for name, value in tree.items() if name != "checksum"}
    return sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
