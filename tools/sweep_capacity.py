"""`python tools/sweep_capacity.py --checkpoint RUN`: quality and time of pictures by how much experts work.

Writes RUN/sweeps/NAME.json and NAME.svg and the run's report, and prints a table. A sweep that was stopped
goes on behind its last point; more capacities are added to those that are there.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.cli.command import command_parser, run_command
from diffmoe_scale.cli.output import check_output
from diffmoe_scale.config.check import require

CAPACITIES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "sweep_capacity",
        "Draw pictures at several capacities with calibrated thresholds: scores of coloured shapes (where "
        "the model knows them), wall time, operations, and where the experts worked. Writes table, plots and "
        "RUN/report.html.",
    )
    add_model_arguments(parser)
    add = parser.add_argument
    text = "average experts a token gets (default: 0.25 0.5 0.75 1 1.5 2)"
    add("--capacities", type=float, nargs="+", default=CAPACITIES, metavar="C", help=text)
    text = "thresholds: one for all, or a quantile for each layer and expert, or both (default: gamma)"
    add("--calibrations", nargs="+", choices=("gamma", "quantile"), default=["gamma"], help=text)
    add("--prompts", type=int, default=48, help="prompts a suite of coloured shapes (default: 48)")
    text = "captions of validation shards, or labels: of other models, and for metrics.names (default: 256)"
    add("--pictures", type=int, default=256, help=text)
    add("--rounds", type=int, default=5, help="timed drawings of a batch at each point (default: 5)")
    add("--timed", type=int, default=16, help="pictures of that batch (default: 16)")
    add("--seed", type=int, default=0, help="source of prompts and initial noise (default: 0)")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    require(2 <= parsed.prompts <= 1_000_000, "--prompts", parsed.prompts, "2 to 1000000")
    require(2 <= parsed.pictures <= 10_000_000, "--pictures", parsed.pictures, "2 to 10000000")
    require(1 <= parsed.rounds <= 10_000, "--rounds", parsed.rounds, "1 to 10000")
    require(1 <= parsed.timed <= 65_536, "--timed", parsed.timed, "1 to 65536")

    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.bench.picture_time import time_points
    from diffmoe_scale.evaluation.capacity_sweep import Asked, open_sweep
    from diffmoe_scale.files import replace_file
    from diffmoe_scale.report.capacity import format_sweep
    from diffmoe_scale.report.capacity_plots import plot_sweep
    from diffmoe_scale.report.report import write_report
    from diffmoe_scale.sampling.batch import check_seed
    from diffmoe_scale.sampling.loading import load_pipeline

    check_seed(parsed.seed)
    pipeline = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    check_output("--checkpoint", pipeline.directory.report)
    asked = [Asked(0.0)]
    asked += [Asked(capacity, kind) for kind in parsed.calibrations for capacity in parsed.capacities]
    sweep = open_sweep(pipeline, asked, count=parsed.prompts, others=parsed.pictures, seed=parsed.seed)
    sweep.measure(asked)
    sweep.keep(time_points(sweep.pipeline, sweep.found, rounds=parsed.rounds, batch=parsed.timed))
    replace_file(sweep.path.with_suffix(".svg"), plot_sweep(sweep.found.points).encode())
    print(format_sweep(sweep.found))
    print(sweep.path)
    print(write_report(pipeline.directory.path))


if __name__ == "__main__":
    sys.exit(main())
