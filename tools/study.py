"""`python tools/study.py --config FILE`: train variants of a model from several seeds, and compare them."""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import OK, TRY_AGAIN, command_parser, run_command, user_path
from diffmoe_scale.config.check import RunError

EXAMPLES = """examples:
  study --config configs/study.yaml --dry-run
  study --config configs/study.yaml
  study --config configs/study.yaml --only diffmoe --seed 1
  study --config configs/study.yaml study.output=/tmp/try run.steps=30 'study.seeds=[0,1]' study.prompts=2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "study",
        "Train variants of a model from several seeds at equal steps and operations, score them, and write "
        "results.jsonl, report.html and report.md. What is done is not done again: stop it at any time, the "
        "same command goes on.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--config", type=user_path, required=True, metavar="FILE", help="YAML file of a study")
    add("--only", action="append", default=[], metavar="VARIANT", help="this variant alone; may be repeated")
    add("--seed", action="append", default=[], type=int, help="this seed alone; may be repeated")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the rows and what is done, and end")
    what.add_argument("--dry-run", action="store_true", help="print operations, steps and time, and end")
    what.add_argument("--report", action="store_true", help="write the page of what is done, and end")
    text = "settings that override the file's: study.* its own, others those of every training"
    add("settings", nargs="*", metavar="key.sub=value", help=text)
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> int:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.cli.output import check_output
    from diffmoe_scale.config.study import load_study
    from diffmoe_scale.study.study import Study

    config = load_study(parsed.config, parsed.settings)
    check_output("study.output", Path(config.study.output), is_folder=True)
    study = Study(config, parsed.config, parsed.settings)
    rows = study.chosen(variants=parsed.only, seeds=parsed.seed)
    if parsed.list:
        print("\n".join(study.describe_rows(rows)))
        return OK
    print("\n".join(study.describe_plan(rows)), flush=True)
    if parsed.dry_run:
        return OK
    if not parsed.report:
        with study.hold() or contextlib.nullcontext():
            make_scenes(config.study.scenes)
            study.make_teacher(rows)
            stopped: list[int] = []
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda number, _: stopped.append(number))
            study.work(rows, is_stopped=lambda: bool(stopped))
        if stopped:
            print(f"stopped by {signal.Signals(stopped[0]).name}; the same command goes on")
            return TRY_AGAIN
    print(study.write_report())
    if study.failures:
        names = ", ".join(study.failures)
        raise RunError(f"{len(study.failures)} rows failed ({names}); the same command tries them again")
    return OK


def make_scenes(folder: str) -> None:
    """Make the embedded scenes unless they are there. Raises: RunError."""
    if not folder:
        return
    tool = Path(__file__).with_name("make_scenes.py")
    if subprocess.run([sys.executable, str(tool), "--output", folder], check=False).returncode != 0:
        raise RunError(f"study.scenes: the scenes could not be made in {folder}; its message is above")


if __name__ == "__main__":
    sys.exit(main())
