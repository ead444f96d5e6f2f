"""The shards of a run's last start: what changed is named, since an epoch then means something else."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.files import replace_file
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

SCHEMA = 1
SHOWN_NAMES = 10


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardRecord:
    """One shard: its path or URL, what it holds, and when a local file was written (0 of a URL)."""

    name: str
    samples: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    mtime_ns: int


_RECORDS = TypeAdapter(list[ShardRecord])


def record_shards(catalog: ShardCatalog, path: Path) -> None:
    """Compare the shards with those in the file `path`, log what changed, and write them there.

    For the main rank, once a start has succeeded. Raises: OSError if the file cannot be written.
    """
    now = describe_shards(catalog)
    before = _read(path)
    if before is not None:
        log_changes(before, now)
    tree = {"schema": SCHEMA, "shards": _RECORDS.dump_python(now, mode="json")}
    replace_file(path, json.dumps(tree, ensure_ascii=False, indent=0).encode())


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


def log_changes(before: Sequence[ShardRecord], now: Sequence[ShardRecord]) -> None:
    """A warning that names shards with other samples or bytes, and says what the position in the data is."""
    old, new = {record.name: record for record in before}, {record.name: record for record in now}
    changes = [
        f"{_short(name)} is gone ({counted(old[name].samples, 'sample')})" for name in old if name not in new
    ]
    changes += [
        f"{_short(name)} is new ({counted(new[name].samples, 'sample')})" for name in new if name not in old
    ]
    touched = []
    for name in (name for name in new if name in old):
        was, is_now = old[name], new[name]
        if was.samples != is_now.samples:
            changes.append(f"{_short(name)} ({counted(was.samples, 'sample')}, now {is_now.samples})")
        elif was.bytes != is_now.bytes:
            changes.append(f"{_short(name)} ({counted(was.bytes, 'byte')}, now {is_now.bytes})")
        elif was.mtime_ns != is_now.mtime_ns:
            touched.append(_short(name))
    if changes:
        logger.warning(
            "%s changed since the last start: %s. The run goes on behind as many samples as before; "
            "which samples an epoch holds, and their order, are those of the shards as they are "
            "now: some "
            "may come again or not at all in this epoch",
            counted(len(changes), "shard"),
            _listed(changes),
        )
    if touched:
        logger.info(
            "written again since the last start, with the same size: %s (%s); their contents may differ",
            counted(len(touched), "shard"),
            _listed(touched),
        )
    if not changes and [record.name for record in before] != [record.name for record in now]:
        logger.warning(
            "the shards changed their order since the last start: the rest of this epoch holds the "
            "samples "
            "of the new order"
        )


def _read(path: Path) -> list[ShardRecord] | None:
    """The shards of the last start; None without a record, or for one that cannot be read (logged)."""
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
            raise ValueError(f"it is no record of schema {SCHEMA}")
        return _RECORDS.validate_python(tree.get("shards"))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.info(
            "%s cannot be read (%s): whether shards changed since the last start is not known", path, reason
        )
        return None


def _short(name: str) -> str:
    return clean_name(Path(name).name)


def _listed(names: Sequence[str]) -> str:
    more = f", ... and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
