"""A layer and a training step against the published DiffMoE code, with equal weights in one run, and against
the expert GEMMs alone.

    git clone https://github.com/KwaiVGI/DiffMoE
    python tools/bench_reference.py DiffMoE --output reference.json

Imports the checkout's modules, which runs its code. They need timm. On CPU freed memory is kept, as in
training, for all contenders alike.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import REFERENCE_EXPERTS, ReferenceOptions
from diffmoe_scale.cli.arguments import user_path
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_reference", __doc__)
    add = parser.add_argument
    add("reference", type=user_path, help="folder of a checkout of github.com/KwaiVGI/DiffMoE")
    text = "number of experts; may be repeated (8, 16, 64 and 128)"
    add("--experts", type=int, action="append", help=text)
    add("--width", type=int, default=256, help="width of the model (256)")
    add("--tokens", type=int, default=2048, help="tokens of a batch (2048)")
    add("--depth", type=int, default=2, help="blocks of the step's model, every second with experts (2)")
    add("--latent-size", type=int, default=32, help="height and width of its pictures (32)")
    add("--rounds", type=int, default=7, help="counted rounds; each times every contender once (7)")
    add("--threads", type=int, default=2, help="CPU threads (2)")
    add("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output, experts = given.pop("output"), given.pop("experts")
    options = ReferenceOptions(experts=tuple(experts or REFERENCE_EXPERTS), **given)
    from diffmoe_scale.bench.reference import bench_reference
    from diffmoe_scale.bench.timing import report

    table, device = bench_reference(options)
    report(table, device, output)


if __name__ == "__main__":
    sys.exit(main())
