"""Measure all on one GPU in at most 9 minutes: smoke test, tests, layer, steps, memory, sampling, trace.

    make gpu                        # writes runs/gpu
    python tools/gpu_report.py --output runs/gpu
    python tools/gpu_report.py --output /tmp/gpu --dry      # the same on a CPU, small

Each part is a process with a time limit of its own, its output in PART.log, its figures in PART.json. What
there is so far is in report.json after each part. Run it in the root of the repository.
"""

import argparse
import math
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_folder, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu_report", __doc__)
    add = parser.add_argument
    add("--output", type=output_folder, required=True, help="folder of the report")
    add("--limit", type=float, default=540.0, help="seconds in all (540)")
    add("--only", nargs="+", default=[], metavar="PART", help="these parts only")
    add("--dry", action="store_true", help="the same commands on a CPU, at small sizes")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.bench.gpu_parts import dry_parts, gpu_parts
    from diffmoe_scale.bench.gpu_report import run_parts
    from diffmoe_scale.config.check import RunError, require

    parts = dry_parts() if parsed.dry else gpu_parts()
    names = [part.name for part in parts]
    for name in parsed.only:
        if name not in names:
            raise ValueError(f"--only has {name!r}; expected of {', '.join(names)}")
    require(0 < parsed.limit < math.inf, "--limit", parsed.limit, "seconds above 0")
    chosen = [part for part in parts if not parsed.only or part.name in parsed.only]
    results = run_parts(chosen, parsed.output, limit_s=parsed.limit)
    bad = [result.name for result in results if result.outcome != "ok"]
    if bad:
        raise RunError(
            f"{len(bad)} of {len(results)} parts are not ok: {', '.join(bad)}; "
            f"look into PART.log in {parsed.output}"
        )


if __name__ == "__main__":
    sys.exit(main())
