"""How long a checkpoint stops training: written in the background, as a run does it, and waited for.

    python tools/bench_checkpoint.py --parameters 300e6 --folder /fast/disk --output checkpoint.json

One process trains a class-conditional model with experts on random pictures. Of a save is timed how long
training stands still (until the next step can begin, and while this step waits for the copy before it changes
the weights), and how long until it is complete, while steps go on. It needs about 50 bytes of memory and 32
of disk a parameter. On a CPU, copying, writing and check sums compete with training for the cores and for
memory bandwidth: `step in a save` over `step` is that price.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import CheckpointOptions
from diffmoe_scale.cli.command import command_parser, output_file, output_folder, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_checkpoint", __doc__)
    add = parser.add_argument
    text = "size of the model, met by its number of experts (300e6)"
    add("--parameters", type=float, default=300e6, help=text)
    add("--width", type=int, default=512, help="width of the model, a multiple of 8 (512)")
    add("--saves", type=int, default=3, help="counted saves of each kind (3)")
    add("--steps", type=int, default=2, help="steps between saves (2)")
    add("--threads", type=int, default=2, help="CPU threads (2)")
    text = "where checkpoints are written and removed again; the machine's temporary folder if none"
    add("--folder", type=output_folder, help=text)
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output = given.pop("output")
    options = CheckpointOptions(**given)

    from diffmoe_scale.bench.checkpoint import bench_checkpoint
    from diffmoe_scale.bench.timing import write_result

    found = bench_checkpoint(options)
    print(found.describe())
    if output is not None:
        write_result(output, found.device, **found.as_result())


if __name__ == "__main__":
    sys.exit(main())
