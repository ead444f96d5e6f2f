"""`python tools/report.py RUN`: write RUN/report.html anew, at any time of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import command_parser, run_command, user_path

# A folder with one of these is a run, even one that was only begun or copied in part.
RUN_FILES = {
    "checkpoints",
    "config.yaml",
    "evaluation.json",
    "log.txt",
    "metrics.jsonl",
    "report.html",
    "samples",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("report", "Write RUN/report.html from what the run directory holds.")
    parser.add_argument("run", type=user_path, help="run directory")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    refuse_other_folder(parsed.run)
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.report.report import write_report

    print(write_report(parsed.run))


def refuse_other_folder(folder: Path) -> None:
    """Raises: ValueError if a folder holds files, but none that a run writes; an empty one passes."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not names & RUN_FILES:
        raise ValueError(
            f"{folder} is no run: it holds none of {', '.join(sorted(RUN_FILES))}; give a run directory"
        )


if __name__ == "__main__":
    sys.exit(main())
