"""Times telemetry within the steps of one real run on one process: phases, figures, expert health, gradient
norm by part, lines and trackers, beside the rest of a step.

    python tools/bench_telemetry.py --config configs/demo.yaml --steps 200 --output telemetry.json

The run's own data are read; its folder is a temporary one. `--steps` is a multiple of telemetry.log_every.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path
from diffmoe_scale.config.check import require


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_telemetry", __doc__)
    add = parser.add_argument
    add("--config", type=user_path, help="YAML file of a run")
    add("--steps", type=int, default=100, help="steps that count (default: 100)")
    add("--output", type=output_file, help="JSON file")
    add("settings", nargs="*", metavar="key.sub=value", help="settings over those of the file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    require(parsed.steps >= 1, "--steps", parsed.steps, "at least 1")

    from diffmoe_scale.bench.telemetry import bench_telemetry
    from diffmoe_scale.bench.timing import report

    rows, about, device = bench_telemetry(parsed.config, parsed.settings, steps=parsed.steps)
    report(rows, device, parsed.output, **about)


if __name__ == "__main__":
    sys.exit(main())
