"""The MoE layer against the dense network of equal activated parameters, research code's loop, and its expert
GEMMs alone.

    python tools/bench_layer.py --threads 2 --shape 384x16x8192 --output layer.json
    python tools/bench_layer.py --ranks 4 --shape 384x16x2048 --output pool.json

On CPU freed memory is kept, as in training, for all contenders alike.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import USUAL_SHAPES, LayerOptions, LayerShape
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_layer", __doc__)
    add = parser.add_argument
    text = "WIDTHxEXPERTSxTOKENS, or xRATIO after it, an expert's width over WIDTH (4); may be repeated "
    text += "(384x16x8192 and 1024x8x4096)"
    add("--shape", type=LayerShape.parse, action="append", help=text)
    text = "counted rounds; each times every contender once (10)"
    add("--rounds", type=int, default=10, help=text)
    add("--threads", type=int, default=2, help="CPU threads of a process (2)")
    text = "format of weights and activations (fp32)"
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help=text)
    add("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    text = "above 1: measure the selection in a pool over this many ranks instead (1)"
    add("--ranks", type=int, default=1, help=text)
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output, shapes = given.pop("output"), given.pop("shape")
    options = LayerOptions(shapes=tuple(shapes or USUAL_SHAPES), **given)
    if options.ranks > 1:
        from diffmoe_scale.bench.pool import bench_pools

        bench_pools(options, output)
        return
    from diffmoe_scale.bench.layer import bench_layers, describe_buffers
    from diffmoe_scale.bench.timing import report

    table, device = bench_layers(options)
    report(table, device, output)
    print(describe_buffers(options))


if __name__ == "__main__":
    sys.exit(main())
