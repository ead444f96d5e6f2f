"""Sets of shards that appear complete or not at all: written in NAME.unfinished, where an interrupted call
goes on, then renamed."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any  # JSON

import webdataset

from diffmoe_scale.data.shards.index import scan_shard
from diffmoe_scale.data.shards.sidecar import index_places, stamp_of, write_index
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.prepare.sources import Sources

WORKING = ".tmp"


def unfinished_folder(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(output.name + ".unfinished")


def read_set_manifest(folder: Path, name: str) -> dict[str, Any] | None:
    """What the complete set in a folder was made with; None if there is none."""
    try:
        found = parse_json((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def begin(
    output: Path,
    *,
    manifest: str,
    made_with: Mapping[str, object],
    sources: Sources | None = None,
    is_overwritten: bool,
) -> Path | None:
    """The folder to write a set in, with what an interrupted call of equal arguments left there; None if the
    set is there already.

    A set is known by `made_with` (JSON: lists, no tuples), which goes into the file `manifest`, and by its
    `sources`, None for one that is made from nothing else. An argument that is not used is None there, not
    absent: a set that was made with it is another one. Ranks may call this at the same time.

    Raises: ValueError if `output` holds other things, or another set, finished or not, and `is_overwritten`
    is false; OSError.
    """
    if os.path.ismount(output):
        raise ValueError(
            f"--output {output} is a disk of its own, which no folder can replace; name one in it"
        )
    _put_in_place(output)
    wanted = dict(made_with) | ({} if sources is None else {"sources": sources.describe()})
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        difference = _differences(output, _manifest_of(output, manifest), wanted, sources)
        if not is_overwritten and not difference:
            return None
        if not is_overwritten:
            raise ValueError(
                f"{output} was made with other arguments or files ({difference}); "
                "choose another --output or give --overwrite"
            )
    unfinished = unfinished_folder(output)
    begun = read_set_manifest(unfinished, manifest)
    difference = "" if begun is None else _differences(unfinished, begun, wanted, sources)
    if difference:
        if not is_overwritten:
            raise ValueError(
                f"{unfinished} was begun with other arguments or files ({difference}); "
                "remove it or give --overwrite"
            )
        with _alone_in(unfinished) as is_there:
            # Another rank may have begun anew meanwhile.
            if is_there and read_set_manifest(unfinished, manifest) == begun:
                shutil.rmtree(unfinished)
    elif begun is None and any(unfinished.glob("*.tar")):
        raise ValueError(
            f"{unfinished} holds shards and no {manifest} that says what they were made from; remove it"
        )
    unfinished.mkdir(parents=True, exist_ok=True)
    if sources is not None:
        sources.save(unfinished)
    replace_file(
        unfinished / manifest, to_json({name: value for name, value in wanted.items() if value is not None})
    )
    return unfinished


def _manifest_of(output: Path, name: str) -> dict[str, Any]:
    found = read_set_manifest(output, name)
    if found is None:
        raise ValueError(f"{output} exists and holds no {name} of an earlier call; choose another --output")
    return found


def _differences(
    folder: Path, found: Mapping[str, object], wanted: Mapping[str, object], sources: Sources | None
) -> str:
    """How the set in a folder differs from the wanted one; "" if it does not."""
    parts = [
        f"{name}: {_shorten(found.get(name))} there, {_shorten(value)} now"
        for name, value in wanted.items()
        if name not in ("sources", "format") and found.get(name) != value
    ]
    if sources is not None and found.get("sources") != wanted["sources"]:
        earlier = Sources.load(folder)
        if "sources" not in found:
            parts.append("it was made by an older version, which did not note the state of its files")
        elif earlier is None:
            parts.append("other files")
        else:
            parts.append(f"files: {earlier.differences(sources) or 'others'}")
    if not parts and found.get("format") != wanted.get("format"):
        parts.append("it was made by another version")
    return "; ".join(parts)


def finished_folder(output: Path) -> Path:
    return unfinished_folder(output).with_suffix(".finished")


def to_json(tree: Mapping[str, object]) -> bytes:
    return json.dumps(dict(tree), indent=1).encode() + b"\n"


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."


def write_shard(path: Path, samples: Iterable[Mapping[str, object]]) -> None:
    """A tar file of samples (`__key__` and bytes by suffix) with its index, seen only when whole. Equal
    samples give equal bytes."""
    working = path.with_name(f"{path.name}{WORKING}")
    count = 0
    with webdataset.TarWriter(str(working), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
            count += 1
    with working.open("rb") as file:
        os.fsync(file.fileno())
    if count:
        # Before the shard has its name: from then on another rank may publish the folder.
        stamp = stamp_of(working) | {"shard": path.name}
        write_index(scan_shard(working), path, index_places(path, None), stamp)
    os.replace(working, path)


def publish(output: Path) -> None:
    """Give a finished set its name, in the place of an earlier one. Ranks may call this at the same time: the
    first one does it."""
    try:
        os.rename(unfinished_folder(output), finished_folder(output))
    except FileNotFoundError:
        return  # another rank was faster
    _put_in_place(output)


def _put_in_place(output: Path) -> None:
    """Give a set its name that is finished but for that, also one whose process was killed meanwhile."""
    output, finished = output.resolve(), finished_folder(output)
    with _alone_in(finished) as is_there:
        if is_there:
            for left in finished.glob(f"*{WORKING}"):
                left.unlink()
            if output.is_dir():
                shutil.rmtree(output)
            os.rename(finished, output)


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Wait for other processes that are here with the same folder, where folders can be locked (over NFS they
    cannot). Whether it still has that name."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat())
    finally:
        os.close(descriptor)
