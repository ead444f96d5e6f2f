"""Writes images as WebDataset shards: KEY.<image suffix>, KEY.txt (caption), KEY.cls (label), KEY.json (what
else is known)."""

import argparse
import os
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_folder, run_command, user_path
from diffmoe_scale.prepare.place import CAPTION_COLUMNS, IMAGE_COLUMNS
from diffmoe_scale.prepare.resumable import resumable

INPUT = (
    "folder of images (hidden files do not count, links are followed), each with NAME.txt or NAME.json "
    '("caption") beside it, or NAME.jpg.txt; or a .csv, .tsv, .jsonl or .parquet table of image paths, '
    "relative to its folder, and captions; or .tar or .parquet files of images; or a folder that img2dataset "
    "wrote"
)
EXAMPLES = """examples:
  python tools/prepare_shards.py --input photos --output shards --resize 512 --validation 0.02
  python tools/prepare_shards.py --input imagenet/train --output shards --resize 256 --classes folders
  python tools/prepare_shards.py --input list.csv --caption-column title --output shards
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(_parser(), resumable(_prepare), arguments)


def _prepare(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.prepare.options import ShardOptions
    from diffmoe_scale.prepare.shards import prepare_shards

    prepared = prepare_shards(ShardOptions(**vars(parsed)))
    print("\n".join(prepared.lines()))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "prepare_shards",
        f"{__doc__}\nWhat is left out is counted in OUTPUT/shards.json, with up to 1,000 names of a kind.\n"
        "The same command again goes on where it was stopped; changed files or options are refused with\n"
        "the difference.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--input", type=user_path, required=True, help=INPUT)
    add(
        "--output",
        type=output_folder,
        required=True,
        help="folder to make, of train-*.tar and validation-*.tar",
    )
    names = ", ".join(IMAGE_COLUMNS)
    text = f"image paths in a table (default: the first there is of {names})"
    add("--image-column", default="", help=text)
    names = ", ".join(CAPTION_COLUMNS)
    add("--caption-column", default="", help=f"captions in a table (default: the first there is of {names})")
    text = (
        "write labels (.cls): 'folders' takes each folder of --input for a class, numbered from 0 in "
        "the order of their names; a file lists the folders, one a line, with a space and a name behind "
        "perhaps (default: no labels)"
    )
    add("--classes", default="", metavar="folders|FILE", help=text)
    text = "leave out images without a caption (default: keep them with an empty one)"
    add("--require-captions", action="store_true", help=text)
    text = "leave out images with a side below this many pixels (default: 0)"
    add("--min-size", type=int, default=0, help=text)
    text = "leave out images with a side more than this many times the other (default: 0, off)"
    add("--max-aspect", type=float, default=0.0, help=text)
    text = (
        "leave out images whose perceptual hash (64 bits) is within this distance of an earlier one's; "
        "0: equal (default: -1, off)"
    )
    add("--duplicates", type=int, default=-1, help=text)
    text = "share of images for validation-*.tar, drawn by a hash of their names (default: 0)"
    add("--validation", type=float, default=0.0, help=text)
    add("--samples-per-shard", type=int, default=2000, help="images a shard (default: 2000)")
    text = "shrink shorter sides to this many pixels, as JPEG or PNG (default: 0, keep the original bytes)"
    add("--resize", type=int, default=0, help=text)
    cores = os.cpu_count() or 1
    add("--workers", type=int, default=cores, help="threads that decode (default: all cores)")
    add("--overwrite", action="store_true", help="replace the shards of an earlier call")
    return parser


if __name__ == "__main__":
    sys.exit(main())
