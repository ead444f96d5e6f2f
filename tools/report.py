"""`python tools/report.py RUN`: write RUN/report.html anew, at any time of a run."""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, run_command, user_path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("report", "Write RUN/report.html from what the run directory holds.")
    parser.add_argument("run", type=user_path, help="run directory")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.report.report import write_report

    print(write_report(parsed.run))


if __name__ == "__main__":
    sys.exit(main())
