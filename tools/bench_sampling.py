"""Wall time of whole pictures at capacity 0.5 against capacity 1, by thresholds and by the top K.

    python tools/bench_sampling.py --output docs/results/sampling.json

A class-conditional network of 3-channel pictures with the weights that training begins with, one process. On
CPU freed memory is kept, as in training, for all contenders alike.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import SamplingOptions
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_sampling", __doc__)
    add = parser.add_argument
    add("--width", type=int, default=384, help="model width (384)")
    add("--depth", type=int, default=4, help="blocks (4)")
    add("--experts", type=int, default=8, help="experts of an MoE layer (8)")
    text = "an MoE layer in every n-th block, a model each (2 1)"
    add("--every", type=int, nargs="+", default=[2, 1], help=text)
    add("--batch", type=int, default=16, help="pictures drawn at once (16)")
    add("--latent-size", type=int, default=32, help="height and width; a token is 2 by 2 (32)")
    add("--steps", type=int, default=4, help="of a picture (4)")
    text = "classifier-free guidance; other than 1 doubles the calls of the network (1)"
    add("--guidance", type=float, default=1.0, help=text)
    text = "counted rounds; each times every contender once (7)"
    add("--rounds", type=int, default=7, help=text)
    add("--threads", type=int, default=2, help="CPU threads (2)")
    add("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = dict(vars(parsed))
    output = given.pop("output")
    options = SamplingOptions(**given | {"every": tuple(given["every"])})

    from diffmoe_scale.bench.sampling import bench_sampling
    from diffmoe_scale.bench.timing import report

    table, device = bench_sampling(options)
    settings = {name: str(value) for name, value in vars(parsed).items()} | {"device": str(device)}
    report(table, device, output, settings=settings)


if __name__ == "__main__":
    sys.exit(main())
