"""Times the start of reading deep in an epoch of a large data set: the first global batch at 90 % against
that at sample 0.

    python tools/bench_resume.py --output resume.json

Makes one small shard with its index and links both under many names, so that the data set is real tar files
and little disk. Indexes are there before the clock starts, as in a run that is continued; each start is a
process of its own.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import ResumeOptions
from diffmoe_scale.cli.command import command_parser, output_file, output_folder, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_resume", __doc__)
    add = parser.add_argument
    add("--shards", type=int, default=200, help="shards of the data set (default: 200)")
    add("--samples", type=int, default=10_000, help="samples of each shard (default: 10000)")
    add("--shuffle-block", type=int, default=64, help="data.shuffle_block (default: 64)")
    text = "where to make the data set, and leave it; otherwise a temporary folder"
    add("--folder", type=output_folder, help=text)
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output = given.pop("output")
    options = ResumeOptions(**given)

    import torch

    from diffmoe_scale.bench.resume import bench_resume
    from diffmoe_scale.bench.timing import write_result

    starts = bench_resume(options)
    if output is not None:
        num_samples = options.shards * options.samples
        write_result(output, torch.device("cpu"), num_samples=num_samples, starts=starts)


if __name__ == "__main__":
    sys.exit(main())
