"""The shards of a run's last start: what changed is named, since an epoch then means something else."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

RECORD_SCHEMA = 1
SHOWN_NAMES = 10
EFFECTS = {
    "shards": "The run goes on behind as many samples as before; which samples an epoch holds, and their "
    "order, are those of the shards as they are now: some may come again or not at all in this epoch",
    "validation": "loss/validation is of other samples from here on: do not compare it with that before",
}
"""What a change means, by the entries of the file: shards of training and of validation."""
NOUNS = {"shards": "shard", "validation": "validation shard"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardRecord:
    """One shard: its path or URL, what it holds, and when a local file was written (0 of a URL)."""

    name: str
    samples: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    mtime_ns: int


_RECORDS = TypeAdapter(list[ShardRecord])


def record_shards(catalog: ShardCatalog, path: Path, *, validation: ShardCatalog | None = None) -> None:
    """Compare the shards with those in the file `path`, log what changed, and write them there.

    For the main rank, once a start has succeeded. Raises: OSError if the file cannot be written.
    """
    now = {"shards": describe_shards(catalog)}
    if validation is not None:
        now["validation"] = describe_shards(validation)
    before = _read(path)
    for name, effect in EFFECTS.items():
        if name in before and name in now:
            log_changes(before[name], now[name], effect=effect, noun=NOUNS[name])
    tree = {name: _RECORDS.dump_python(records, mode="json") for name, records in now.items()}
    replace_file(path, json.dumps({"schema": RECORD_SCHEMA} | tree, ensure_ascii=False, indent=0).encode())


def describe_shards(catalog: ShardCatalog) -> list[ShardRecord]:
    """The shards in the order of the data set."""
    found = []
    for shard, path in enumerate(catalog.paths):
        is_remote = catalog.remote is not None and catalog.is_remote(shard)
        name = catalog.remote.urls[path] if catalog.remote is not None and is_remote else str(path.absolute())
        mtime_ns = 0 if is_remote else path.stat().st_mtime_ns
        size = catalog.sizes[shard] if is_remote else path.stat().st_size
        # A file's name may be no UTF-8, which neither pydantic nor JSON takes.
        name = name.encode("utf-8", "backslashreplace").decode()
        found.append(ShardRecord(name, catalog.counts[shard], size, mtime_ns))
    return found


def log_changes(
    before: Sequence[ShardRecord], now: Sequence[ShardRecord], *, effect: str, noun: str = "shard"
) -> None:
    """A warning that names shards with other samples or bytes, and what follows from it."""
    moved = _moved(before, now)
    if moved:
        (name, place), *_ = moved.items()
        logger.info(
            "%s moved since the last start, such as %s to %s: the same names, samples and sizes",
            counted(len(moved), noun),
            clean_name(name),
            clean_name(place),
        )
    before = [replace(record, name=moved.get(record.name, record.name)) for record in before]
    old, new = {record.name: record for record in before}, {record.name: record for record in now}
    changes = [f"{_short(name)} is gone ({_samples(old[name])})" for name in old if name not in new]
    changes += [f"{_short(name)} is new ({_samples(new[name])})" for name in new if name not in old]
    touched = []
    for name in (name for name in new if name in old):
        was, is_now = old[name], new[name]
        if was.samples != is_now.samples:
            changes.append(f"{_short(name)} ({_samples(was)}, now {is_now.samples})")
        elif was.bytes != is_now.bytes:
            changes.append(f"{_short(name)} ({counted(was.bytes, 'byte')}, now {is_now.bytes})")
        elif was.mtime_ns != is_now.mtime_ns and name not in moved.values():
            touched.append(_short(name))
    if changes:
        logger.warning(
            "%s changed since the last start: %s. %s", counted(len(changes), noun), _listed(changes), effect
        )
    if touched:
        logger.info(
            "written again since the last start, with the same size: %s (%s); their contents may differ",
            counted(len(touched), noun),
            _listed(touched),
        )
    if not changes and [record.name for record in before] != [record.name for record in now]:
        logger.warning("the %ss changed their order since the last start. %s", noun, effect)


def _moved(before: Sequence[ShardRecord], now: Sequence[ShardRecord]) -> dict[str, str]:
    """The new name of each shard that lies elsewhere and is the same by file name, samples and bytes; only of
    those that one alone can be."""
    old, new = {record.name for record in before}, {record.name for record in now}
    gone = _by_look(record for record in before if record.name not in new)
    come = _by_look(record for record in now if record.name not in old)
    return {
        names[0]: come[look][0]
        for look, names in gone.items()
        if len(names) == 1 and len(come.get(look, ())) == 1
    }


def _by_look(records: Iterable[ShardRecord]) -> dict[tuple[str, int, int], list[str]]:
    found: dict[tuple[str, int, int], list[str]] = {}
    for record in records:
        found.setdefault((Path(record.name).name, record.samples, record.bytes), []).append(record.name)
    return found


def _samples(record: ShardRecord) -> str:
    return counted(record.samples, "sample")


def _read(path: Path) -> dict[str, list[ShardRecord]]:
    """The shards of the last start, those of validation by an entry of their own; none without a record, or
    for one that cannot be read (logged)."""
    if not path.exists():
        return {}
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("schema") != RECORD_SCHEMA:
            raise ValueError(f"it is no record of schema {RECORD_SCHEMA}")
        # An older version has no entry for validation.
        return {
            name: _RECORDS.validate_python(tree.get(name))
            for name in EFFECTS
            if name == "shards" or name in tree
        }
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.info(
            "%s cannot be read (%s): whether shards changed since the last start is not known", path, reason
        )
        return {}


def _short(name: str) -> str:
    return clean_name(Path(name).name)


def _listed(names: Sequence[str]) -> str:
    more = f", ... and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
