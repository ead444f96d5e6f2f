"""Training steps of one run under several settings, in turns: what a number format, an optimizer or a router
costs.

    python tools/bench_settings.py --config configs/demo.yaml run.global_batch=16 \\
        --contender fp32 --contender bf16 model.precision=bf16 --output settings.json

The first contender is what the others are measured against. One process on the run's own data; the runs are
written to a temporary folder.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path
from diffmoe_scale.config.check import require


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_settings", __doc__)
    add = parser.add_argument
    add("--config", type=user_path, help="YAML file of settings")
    text = "a name, and settings that it has beside those of all; at least twice"
    add("--contender", nargs="+", action="append", metavar=("NAME", "key.sub=value"), help=text)
    add("--rounds", type=int, default=20, help="counted rounds; each times every contender once (20)")
    add("--output", type=output_file, help="JSON file")
    add("settings", nargs="*", metavar="key.sub=value", help="settings of all contenders")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = parsed.contender or []
    contenders = {name: settings for name, *settings in given}
    names = [name for name, *_ in given]
    require(
        len(contenders) == len(names) >= 2, "--contender", " ".join(names) or "missing", "two or more names"
    )
    require(parsed.rounds >= 1, "--rounds", parsed.rounds, "at least 1")

    from diffmoe_scale.bench.settings import bench_settings
    from diffmoe_scale.bench.timing import report

    rows, device = bench_settings(parsed.config, parsed.settings, contenders, rounds=parsed.rounds)
    report(rows, device, parsed.output, config=str(parsed.config), settings=parsed.settings)


if __name__ == "__main__":
    sys.exit(main())
