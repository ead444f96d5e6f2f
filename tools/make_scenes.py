"""Writes the embedded data set of coloured shapes as WebDataset shards: KEY.png, KEY.txt (caption), KEY.json
(claims)."""

import argparse
import functools
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any  # arguments of any type

from PIL import Image
from tqdm import tqdm

from diffmoe_scale.cli.command import command_parser, output_folder, run_command
from diffmoe_scale.prepare.resumable import resumable
from diffmoe_scale.scenes.scenes import PAIRS, Scene, Split, draw_scene
from diffmoe_scale.scenes.shapes import render

SCENES_FILE = "scenes.json"
SHARD_SAMPLES = 2000
LARGEST = 4096
"""Pixels of a side."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "make_scenes",
        "Write pictures of coloured shapes with captions to OUTPUT/train-*.tar and OUTPUT/validation-*.tar.\n"
        "Same arguments, same bytes.",
    )
    add = parser.add_argument
    add("--output", type=output_folder, required=True, help="folder to make")
    add("--train", type=int, default=40_000, help="training samples (default: 40000)")
    add("--validation", type=int, default=1_000, help="validation samples (default: 1000)")
    text = "easy: large objects; full: small ones too, anywhere (default: easy)"
    add("--level", choices=("easy", "full"), default="easy", help=text)
    text = "width and height in pixels, at least 32 (default: 32)"
    add("--resolution", type=int, default=32, help=text)
    add("--seed", type=int, default=0, help="source of all random numbers (default: 0)")
    text = "share of the pictures with two different objects (default: 0.5)"
    add("--pairs", type=float, default=PAIRS, help=text)
    add("--overwrite", action="store_true", help="replace scenes made with other arguments")
    return run_command(parser, resumable(make_scenes), arguments)


def make_scenes(parsed: argparse.Namespace) -> None:
    """Write the set unless it is there. The folder appears only when complete; the same call again goes on
    where it was stopped."""
    from diffmoe_scale.prepare.publish import begin, publish  # loads torch, as webdataset does

    made_with: dict[str, Any] = {
        name: getattr(parsed, name) for name in ("train", "validation", "level", "resolution", "seed")
    }
    _check(made_with)
    if not 0 <= parsed.pairs <= 1:
        raise ValueError(f"--pairs is {parsed.pairs}; expected 0 to 1")
    made_with["pairs"] = None if parsed.pairs == PAIRS else parsed.pairs
    folder = begin(parsed.output, manifest=SCENES_FILE, made_with=made_with, is_overwritten=parsed.overwrite)
    if folder is None:
        print(f"{parsed.output}: these scenes are there already")
        return
    counts: dict[Split, int] = {"train": parsed.train, "validation": parsed.validation}
    for split, count in counts.items():
        scenes = functools.partial(draw_scene, seed=parsed.seed, level=parsed.level, pairs=parsed.pairs)
        write_split(folder, split, count=count, resolution=parsed.resolution, draw=scenes)
    publish(parsed.output)
    print(f"{parsed.output}: {parsed.train} training and {parsed.validation} validation samples")


def write_split(
    folder: Path, split: Split, *, count: int, resolution: int, draw: Callable[..., Scene]
) -> None:
    """The shards of one split that are not there yet, SHARD_SAMPLES a shard; no shard for no samples."""
    from diffmoe_scale.prepare.publish import write_shard

    with tqdm(total=count, desc=split, unit="sample", disable=None) as progress:
        for number, first in enumerate(range(0, count, SHARD_SAMPLES)):
            indices = range(first, min(first + SHARD_SAMPLES, count))
            path = folder / f"{split}-{number:06d}.tar"
            if not path.is_file():
                write_shard(path, _samples(split, indices, resolution=resolution, draw=draw))
            progress.update(len(indices))


def _samples(
    split: Split, indices: range, *, resolution: int, draw: Callable[..., Scene]
) -> Iterator[dict[str, str | bytes]]:
    for index in indices:
        scene = draw(index, split=split)
        buffer = io.BytesIO()
        Image.fromarray(render(scene.objects, resolution)).save(buffer, "png", compress_level=6)
        yield {
            "__key__": f"{split}-{index:08d}",
            "png": buffer.getvalue(),
            "txt": scene.caption.encode(),
            "json": json.dumps(scene.metadata).encode(),
        }


def _check(made_with: dict[str, Any]) -> None:
    for name, least in (("train", 1), ("validation", 0), ("resolution", 32), ("seed", 0)):
        if made_with[name] < least:
            raise ValueError(f"--{name} is {made_with[name]}; expected at least {least}")
    if made_with["resolution"] > LARGEST:
        raise ValueError(f"--resolution is {made_with['resolution']}; expected at most {LARGEST}")


if __name__ == "__main__":
    sys.exit(main())
