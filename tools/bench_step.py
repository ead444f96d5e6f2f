"""A training step of a whole model with experts against the dense model of equal activated parameters, and
research code's loop.

    python tools/bench_step.py --threads 2 --width 384 --depth 4 --batch 32 --output step.json

A class-conditional network on random latents, one process, torch's AdamW. The dense model's step updates
fewer weights: `forward+backward` leaves the update out, `step` has it. On CPU freed memory is kept, as in
training, for all contenders alike.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import StepOptions
from diffmoe_scale.cli.command import command_parser, output_file, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_step", __doc__)
    add = parser.add_argument
    add("--width", type=int, default=384, help="model width (384)")
    add("--depth", type=int, default=4, help="blocks (4)")
    add("--experts", type=int, default=16, help="experts of an MoE layer (16)")
    add("--every", type=int, default=2, help="an MoE layer in every n-th block (2)")
    add("--batch", type=int, default=16, help="samples (16)")
    text = "height and width of the latents; a token is 2 by 2 (32)"
    add("--latent-size", type=int, default=32, help=text)
    text = "counted rounds; each times every contender once (8)"
    add("--rounds", type=int, default=8, help=text)
    add("--threads", type=int, default=2, help="CPU threads (2)")
    text = "format of weights and activations (fp32)"
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help=text)
    add("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    text = "also measure the grouped layer's model with run.compile, which takes minutes to begin"
    add("--compile", dest="is_compiled", action="store_true", help=text)
    add("--output", type=output_file, help="JSON file")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = dict(vars(parsed))
    output = given.pop("output")
    options = StepOptions(**given)

    from diffmoe_scale.bench.step import bench_step
    from diffmoe_scale.bench.timing import report

    table, device = bench_step(options)
    settings = {name: str(value) for name, value in vars(parsed).items()} | {"device": str(device)}
    report(table, device, output, settings=settings)


if __name__ == "__main__":
    sys.exit(main())
