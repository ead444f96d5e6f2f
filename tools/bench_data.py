"""Samples a second and CPU time a sample of reading: pictures (decode, crop) and features, against webdataset
and torchvision on the same files.

    python tools/bench_data.py --output data.json

One core each, in turns; medians over the rounds. A ratio is of CPU time, pair by pair within a round.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import DataOptions
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_data", __doc__)
    add = parser.add_argument
    text = "shards of pictures: a path, glob or brace list (default: makes some of JPEG, 256 x 256)"
    add("--pictures", default="", help=text)
    text = "shards of tools/cache_features.py (default: makes some: latents 4 x 32 x 32, text 20 x 768)"
    add("--features", default="", help=text)
    add("--image-size", type=int, default=256, help="width and height of decoded pictures (default: 256)")
    add("--samples", type=int, default=1024, help="samples a round (default: 1024)")
    add("--batch", type=int, default=64, help="samples a batch (default: 64)")
    add("--rounds", type=int, default=7, help="rounds (default: 7)")
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output = given.pop("output")
    options = DataOptions(**given)

    import torch

    from diffmoe_scale.bench.data import bench_data
    from diffmoe_scale.bench.timing import write_result

    found = bench_data(options)
    if output is not None:
        write_result(output, torch.device("cpu"), **found)


if __name__ == "__main__":
    sys.exit(main())
