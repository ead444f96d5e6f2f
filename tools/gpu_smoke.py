"""Whether what a GPU run stands on works: packages, NCCL with one rank, grouped products, an MoE layer, and
Transformer Engine's number formats.

    python tools/gpu_smoke.py --output smoke.json
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu_smoke", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    parser.add_argument("--output", type=output_file, help="JSON file")
    return run_command(parser, check, arguments)


def check(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.bench.contenders import set_up_device
    from diffmoe_scale.bench.gpu_smoke import smoke
    from diffmoe_scale.bench.timing import write_result
    from diffmoe_scale.config.check import RunError

    device = set_up_device(parsed.device, threads=1)
    outcomes = smoke(device)
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    if parsed.output is not None:
        write_result(parsed.output, device, checks=outcomes)
    bad = [name for name, outcome in outcomes.items() if not outcome.startswith("ok")]
    if bad:
        raise RunError(
            f"{len(bad)} of {len(outcomes)} checks failed: {', '.join(bad)}; their errors stand above"
        )


if __name__ == "__main__":
    sys.exit(main())
