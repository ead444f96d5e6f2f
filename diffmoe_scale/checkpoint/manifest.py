"""The manifest of a checkpoint: what it holds, check sums of its files, what wrote it. It is written last."""

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any  # Any: JSON trees

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from diffmoe_scale.config.load import config_tree, load_config
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.words import counted

MANIFEST_SCHEMA = 1
MANIFEST = "manifest.json"
METADATA = ".metadata"
"""The table of tensors of torch.distributed.checkpoint."""
STEP_FOLDER = re.compile(r"step_(\d{8,18})", re.ASCII)
MOST_SHOWN = 5
SECOND_AVERAGE = "ema2/"
"""What the names of a second weight average begin with."""
ALIGNMENT = "alignment"
"""Family of the projector of representation alignment, which is no part of the model."""
OPTIONAL = (SECOND_AVERAGE, f"{ALIGNMENT}/")
"""Beginnings of names that a checkpoint may hold though nobody asks for them."""
RECORDED_PACKAGES = ("torch", "deepspeed", "megatron-core")
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
"""No folder: a manifest cannot point outside of its checkpoint."""


Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """Size in bytes and SHA-256 of a file of a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    size: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. `samples` is the position in the data, and `samples_by_bucket` where there are
    buckets; `optimizer_steps` leaves skipped steps out."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    step: Count
    samples: Count
    optimizer_steps: Count
    samples_by_bucket: dict[str, Count] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    layout: dict[str, Count] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    """State of train.guard: usual losses, bad steps and rollbacks so far."""
    line: dict[str, Any] = field(default_factory=dict)
    """State of train.reporter: what the next line of metrics.jsonl holds already; {} right after a line, and
    in checkpoints of older versions, whose next line begins at the resume."""
    teacher: str = ""
    """Fingerprint of the encoder that it is aligned with; "" without alignment."""
    shapes: dict[str, list[Count]] = field(default_factory=dict)
    files: dict[FileName, StoredFile] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = MANIFEST_SCHEMA
    checksum: str = ""
    """Of all other fields; made when the manifest is written."""


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders of a run that were complete checkpoints when they got their name, oldest first.

    Raises: OSError if the folder is there and cannot be listed (a dead mount): not the same as none.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((folder / name for name in names if STEP_FOLDER.fullmatch(name)), key=step_of)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Those of them that still have a manifest. Raises: OSError as `checkpoint_folders`."""
    return [path for path in checkpoint_folders(folder) if (path / MANIFEST).is_file()]


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises: ValueError if the folder is no complete checkpoint, its manifest is damaged, of another schema
    or of another step than the folder's name says."""
    path = checkpoint / MANIFEST
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{checkpoint} is no complete checkpoint: it has no file {MANIFEST}")
    try:
        text = path.read_text(encoding="utf-8")
        tree = parse_json(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} is no complete checkpoint: {MANIFEST} cannot be read ({error})"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} holds a {type(tree).__name__}; expected an object with step, files, checksum, ..."
        )
    if tree.get("schema") != MANIFEST_SCHEMA:
        raise ValueError(
            f"{checkpoint} has schema {tree.get('schema')}; this version reads schema {MANIFEST_SCHEMA}"
        )
    if tree.get("checksum") != _manifest_checksum(tree):
        raise ValueError(f"{MANIFEST} of {checkpoint} has another check sum than when it was written")
    try:
        manifest = TypeAdapter(Manifest).validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()[:MOST_SHOWN]
        )
        raise ValueError(
            f"{MANIFEST} of {checkpoint} has other fields than this version writes ({wrong})"
        ) from error
    if STEP_FOLDER.fullmatch(checkpoint.name) and manifest.step != step_of(checkpoint):
        raise ValueError(
            f"{checkpoint} holds step {manifest.step}: the folder was renamed; give it its name back"
        )
    if METADATA not in manifest.files:
        raise ValueError(f"{MANIFEST} of {checkpoint} has no check sum of {METADATA}")
    return manifest


def find_damage(
    checkpoint: Path, manifest: Manifest, names: Iterable[str], *, is_read: bool = True
) -> list[str]:
    """What is wrong with the files `names` of a checkpoint; each is read to its end, unless only their sizes
    are looked at."""
    problems = []
    for name in names:
        path, expected = checkpoint / name, manifest.files[name]
        if path.is_symlink():
            problems.append(f"{name} is a link; expected a file of the checkpoint")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != expected.size:
            problems.append(f"{name} has {counted(size, 'byte')} instead of {expected.size}")
        elif is_read and describe_file(path) != expected:
            problems.append(f"{name} has another check sum than when it was written")
    return problems


def write_manifest(folder: Path, manifest: Manifest) -> None:
    tree = asdict(manifest)
    tree["checksum"] = _manifest_checksum(tree)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(tree, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def package_versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()}


def describe_file(path: Path) -> StoredFile:
    """Reads the file to its end. Raises: OSError."""
    with path.open("rb") as file:
        return StoredFile(
            size=os.fstat(file.fileno()).st_size, sha256=file_digest(file, "sha256").hexdigest()
        )


def different_shapes(
    held: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], *, by: str = "here"
) -> list[str]:
    """`NAME is [3, 4] there and missing here` for each tensor of another shape, and each that only one has;
    `by` says where the expected ones are from."""
    return [
        f"{name} is {held.get(name, 'missing')} there and {expected.get(name, 'missing')} {by}"
        for name in sorted({*held, *expected})
        if held.get(name) != expected.get(name)
    ]


def check_model(
    checkpoint: Path,
    manifest: Manifest,
    shapes: Mapping[str, list[int]],
    settings: Mapping[str, Any],
    *,
    held: Mapping[str, list[int]] | None = None,
) -> None:
    """Raises: ValueError unless the checkpoint holds exactly tensors of these names and shapes, made with
    these settings. What is OPTIONAL and not asked for may be there, too.

    Settings too: heads, objective or gate can change what weights mean and leave every shape as it is.
    """
    held = manifest.shapes if held is None else held
    for family in OPTIONAL:
        if not any(name.startswith(family) for name in shapes):
            held = {name: shape for name, shape in held.items() if not name.startswith(family)}
    wrong = different_shapes(held, shapes)
    changed = [
        f"{section}.{key} was {before!r}, is {settings.get(section, {}).get(key)!r}"
        for section, entries in _completed(manifest.settings, settings).items()
        for key, before in entries.items()
        if settings.get(section, {}).get(key) != before
    ]
    if not wrong and not changed:
        return
    tensors = (
        f"{counted(len(wrong), 'tensor')} of other shape, such as {'; '.join(wrong[:MOST_SHOWN])}"
        if wrong
        else "All tensors have the same shapes"
    )
    raise ValueError(
        f"checkpoint {checkpoint} is of another model. Settings that differ: {'; '.join(changed) or 'none'}. "
        f"Restore them, or choose another run.directory. {tensors}"
    )


def _completed(
    stated: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The settings that a manifest states and, for those of `settings` that an older one did not know yet,
    their defaults: what was the only way then. One that states none is compared by its tensors alone."""
    defaults = config_tree(load_config(None)) if stated else {}
    completed = {
        section: {key: value for key, value in entries.items() if key in settings.get(section, {})}
        for section, entries in defaults.items()
    }
    return {
        section: completed.get(section, {}) | dict(stated.get(section, {}))
        for section in {**stated, **completed}
    }


def _manifest_checksum(tree: Mapping[str, Any]) -> str:
    others = {name: value for name, value in tree.items() if name != "checksum"}
    return sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
