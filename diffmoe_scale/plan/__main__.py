"""`python -m diffmoe_scale.plan --config FILE --gpus N --gpu MODEL`: what a run costs before it starts."""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path
from diffmoe_scale.config.check import RunError, require
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.telemetry.hardware import GPUS, gpu_of_user

MAX_GPUS, MAX_SAMPLES, MAX_MEASURED = 100_000, 10**12, 16
EPILOG = """\
Times, speeds and prices are estimates from stated figures (docs/planning.md), not measured. Memory is that of
the tensors of a step, within 5 % of measured steps; each GPU keeps 2.5 GiB and 5 % free.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "plan",
        "Print the size of a config's model, its memory and speed on GPUs, and the fastest layout that fits.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("--config", type=user_path, required=True, help="YAML file of settings")
    add("--gpus", type=int, required=True, help="GPUs of the run, in machines of 8")
    names = ", ".join(gpu.name for gpu in GPUS)
    add("--gpu", default="h100", help=f"model of the GPUs: {names} (default: h100)")
    add("--samples", type=int, default=0, help="samples of the data set, for epochs")
    add("--data", action="store_true", help="read the config's data set: steps of an epoch, by bucket")
    add("--price-per-hour", type=float, default=0.0, help="price of a GPU for an hour")
    add("--layout-only", action="store_true", help="the config's own layout alone, without a search")
    add("--json", action="store_true", help="print JSON instead of text")
    add("--measure", action="store_true", help="compare the memory with real steps of --gpus CPU ranks here")
    add("--table", type=output_file, help="with --measure: of many layouts, written to this JSON file, too")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> int:
    check_arguments(parsed)
    gpu = gpu_of_user(parsed.gpu)
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.telemetry.log import silence_packages

    silence_packages()
    config = load_config(parsed.config, parsed.settings)
    require(
        config.parallel.sequence_parallel == 1,
        "parallel.sequence_parallel",
        config.parallel.sequence_parallel,
        "1: time and traffic are estimated without it (pretrain --dry-run prints the memory with it)",
    )
    if parsed.measure:
        from diffmoe_scale.plan.measure_ranks import measure_lines
        from diffmoe_scale.plan.measure_table import describe_rows, measure_table, write_rows

        check_measured(config, ranks=parsed.gpus)
        if parsed.table is None:
            print("\n".join(measure_lines(config, ranks=parsed.gpus)))
            return 0
        rows = measure_table(config, ranks=parsed.gpus)
        write_rows(parsed.table, rows, ranks=parsed.gpus)
        print("\n".join(describe_rows(rows)))
        return 0
    from diffmoe_scale.plan.epochs import Epochs, read_epochs
    from diffmoe_scale.plan.summary import summarize

    summary = summarize(
        config,
        ranks=parsed.gpus,
        gpu=gpu,
        epochs=read_epochs(config) if parsed.data else Epochs(parsed.samples),
        price_per_hour=parsed.price_per_hour,
        has_search=not parsed.layout_only,
    )
    print(summary.json() if parsed.json else summary.text())
    if not summary.fits:
        raise RunError(summary.advice())
    return 0


def check_arguments(parsed: argparse.Namespace) -> None:
    """Raises: ValueError."""
    if not 1 <= parsed.gpus <= MAX_GPUS:
        raise ValueError(f"--gpus is {parsed.gpus}; expected 1 to {MAX_GPUS}")
    if parsed.table is not None and not parsed.measure:
        raise ValueError(f"--table is {str(parsed.table)!r}, which is for --measure alone; add --measure")
    if not 0 <= parsed.samples <= MAX_SAMPLES:
        raise ValueError(f"--samples is {parsed.samples}; expected 0 (not known) to {MAX_SAMPLES}")
    if not 0 <= parsed.price_per_hour <= 1e6:
        raise ValueError(f"--price-per-hour is {parsed.price_per_hour}; expected 0 (not known) to 1000000")


def check_measured(config: Config, *, ranks: int) -> None:
    """Raises: ValueError unless `ranks` CPU ranks of this machine can take steps of a config."""
    from diffmoe_scale.plan.search import check_batch, check_layout

    if ranks > MAX_MEASURED:
        raise ValueError(f"--gpus is {ranks}; expected at most {MAX_MEASURED} ranks to --measure")
    check_batch(config, ranks)
    check_layout(config, ranks)


if __name__ == "__main__":
    sys.exit(main())
