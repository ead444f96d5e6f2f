"""Sets of shards that appear complete or not at all: written in NAME.unfinished, where an interrupted call
goes on, then renamed."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn  # Any: JSON

import webdataset

from diffmoe_scale.data.shards.index import ShardCatalog
from diffmoe_scale.files import replace_file

WORKING = ".tmp"


def run_tool(main: Callable[[], int]) -> NoReturn:
    """End with the exit code of a tool that makes a set. Ctrl-C loses no finished shard, so it needs no
    traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # what shells give to a command that it ended


def unfinished_folder(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(output.name + ".unfinished")


def read_manifest(folder: Path, name: str) -> dict[str, Any] | None:
    """What the complete set in a folder was made with; None if there is none."""
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def begin(
    output: Path, *, manifest: str, made_with: Mapping[str, object], is_overwritten: bool
) -> Path | None:
    """The folder to write a set in, with what an interrupted call of equal arguments left there; None if the
    set is there already.

    `made_with` (JSON: lists, no tuples) is what a set is known by; it goes into the file `manifest`. Ranks
    may call this at the same time.

    Raises: ValueError if `output` holds other things, or another set, finished or not, and `is_overwritten`
    is false.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = read_manifest(output, manifest)
        if found is None:
            raise ValueError(
                f"{output} exists and holds no {manifest} of an earlier call; choose another --output"
            )
        if not is_overwritten:
            if made_with.items() <= found.items():
                return None
            raise ValueError(
                f"{output} was made with other arguments ({_differences(found, made_with)}); choose another --output or give --overwrite"
            )
    unfinished = unfinished_folder(output)
    begun = read_manifest(unfinished, manifest)
    if begun is not None and not made_with.items() <= begun.items():
        if not is_overwritten:
            raise ValueError(
                f"{unfinished} was begun with other arguments ({_differences(begun, made_with)}); remove it or give --overwrite"
            )
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    replace_file(unfinished / manifest, to_json(made_with))
    return unfinished


def to_json(tree: Mapping[str, object]) -> bytes:
    return json.dumps(dict(tree), indent=1).encode() + b"\n"


def _differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """What two sets were made with, where it differs."""
    return "; ".join(
        f"{name}: {_shorten(found.get(name))} there, {_shorten(value)} now"
        for name, value in wanted.items()
        if found.get(name) != value
    )


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."


def write_shard(path: Path, samples: Iterable[Mapping[str, object]]) -> None:
    """A tar file of samples (`__key__` and bytes by suffix) with its index, seen only when whole. Equal
    samples give equal bytes."""
    working = path.with_name(f"{path.name}{WORKING}")
    with webdataset.TarWriter(str(working), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    os.replace(working, path)
    ShardCatalog([path])  # makes the index


def publish(output: Path) -> None:
    """Give a finished set its name, in the place of an earlier one. Ranks may call this at the same time: the
    first one does it."""
    unfinished, output = unfinished_folder(output), output.resolve()
    finished = unfinished.with_suffix(".finished")
    try:
        os.rename(unfinished, finished)
    except FileNotFoundError:
        return  # another rank was faster
    for left in finished.glob(f"*{WORKING}"):
        left.unlink()
    if output.is_dir():
        shutil.rmtree(output)
    os.rename(finished, output)
