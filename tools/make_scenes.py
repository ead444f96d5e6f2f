"""Writes the embedded data set of coloured shapes as WebDataset shards: KEY.png, KEY.txt (caption), KEY.json (claims)."""

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import webdataset
from PIL import Image
from tqdm import tqdm

from diffmoe_scale.data.scenes import Level, Split, draw_scene
from diffmoe_scale.data.shapes import render

MANIFEST = "scenes.json"
SHARD_SAMPLES = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make_scenes",
        description="Write pictures of coloured shapes with captions to OUTPUT/train-*.tar and OUTPUT/validation-*.tar. Same arguments, same bytes.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--train", type=int, default=40_000, help="training samples (default: 40000)")
    parser.add_argument("--validation", type=int, default=1_000, help="validation samples (default: 1000)")
    parser.add_argument(
        "--level", choices=("easy", "full"), default="easy", help="easy: large objects; full: small ones too, anywhere (default: easy)"
    )
    parser.add_argument("--resolution", type=int, default=32, help="width and height in pixels, at least 32 (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="source of all random numbers (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace scenes made with other arguments")
    parsed = parser.parse_args(arguments)
    try:
        return make_scenes(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_scenes(parsed: argparse.Namespace) -> int:
    """Write the set unless it is there. The folder appears only when complete, so an interrupted call leaves none."""
    made_with = {name: getattr(parsed, name) for name in ("train", "validation", "level", "resolution", "seed")}
    _check(made_with)
    output = parsed.output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = _made_with(output)
        if found == made_with and not parsed.overwrite:
            print(f"{parsed.output}: these scenes are there already")
            return 0
        if found is None:
            raise ValueError(f"{parsed.output} exists and holds no scenes; choose another --output")
        if not parsed.overwrite:
            raise ValueError(f"{parsed.output} holds scenes made with other arguments ({found}); choose another --output or give --overwrite")
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        counts: dict[Split, int] = {"train": parsed.train, "validation": parsed.validation}
        for split, count in counts.items():
            write_split(unfinished, split, count=count, level=parsed.level, resolution=parsed.resolution, seed=parsed.seed)
        (unfinished / MANIFEST).write_text(json.dumps(made_with, indent=1) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.rename(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{parsed.output}: {parsed.train} training and {parsed.validation} validation samples")
    return 0


def write_split(folder: Path, split: Split, *, count: int, level: Level, resolution: int, seed: int) -> None:
    """Shards of one split, SHARD_SAMPLES a shard; no shard for no samples."""
    if count == 0:
        return
    pattern = str(folder / split).replace("%", "%%") + "-%06d.tar"
    # mtime: equal arguments give equal bytes.
    with webdataset.ShardWriter(pattern, maxcount=SHARD_SAMPLES, mtime=0, verbose=0) as writer:
        for sample in tqdm(
            _samples(split, count=count, level=level, resolution=resolution, seed=seed), total=count, desc=split, unit="sample", disable=None
        ):
            writer.write(sample)


def _samples(split: Split, *, count: int, level: Level, resolution: int, seed: int) -> Iterator[dict[str, str | bytes]]:
    for index in range(count):
        scene = draw_scene(index, seed=seed, level=level, split=split)
        buffer = io.BytesIO()
        Image.fromarray(render(scene.objects, resolution)).save(buffer, "png", compress_level=6)
        yield {
            "__key__": f"{split}-{index:08d}",
            "png": buffer.getvalue(),
            "txt": scene.caption.encode(),
            "json": json.dumps(scene.metadata).encode(),
        }


def _check(made_with: dict[str, int]) -> None:
    for name, least in (("train", 1), ("validation", 0), ("resolution", 32), ("seed", 0)):
        if made_with[name] < least:
            raise ValueError(f"--{name} is {made_with[name]}; expected at least {least}")


def _made_with(folder: Path) -> dict[str, int] | None:
    """The arguments of the complete set in a folder, or None."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


if __name__ == "__main__":
    sys.exit(main())
