"""Time and memory of FID, KID, precision and recall from the features of 50,000 pictures; the network that
gives features is not measured.

    python tools/bench_metrics.py --output docs/results/metrics.json

Each task is a process of its own, whose peak of resident memory is taken; it also holds Python and torch.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import MetricsOptions
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_metrics", __doc__)
    add = parser.add_argument
    add("--pictures", type=int, default=50_000, help="samples (default: 50000)")
    add("--reference", type=int, default=10_000, help="reference pictures (default: 10000, as ADM's file)")
    add("--width", type=int, default=2048, help="features of a picture (default: 2048, as Inception)")
    add("--batch", type=int, default=64, help="pictures of a batch (default: 64)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output = given.pop("output")
    options = MetricsOptions(**given)

    import torch

    from diffmoe_scale.bench.metrics import bench_metrics
    from diffmoe_scale.bench.timing import report

    report(bench_metrics(options), torch.device("cpu"), output, **given)


if __name__ == "__main__":
    sys.exit(main())
