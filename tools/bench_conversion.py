"""Time and memory of the conversion of a run to bf16 safetensors files, beside the speed at which its disk
copies files.

    python tools/bench_conversion.py --config configs/t2i256_4.6b.yaml --output docs/results/conversion.json

Random weights of the config's model are written as a run directory, converted without and with the comparison
of outputs, each in a process of its own, and removed. The disk holds 4 bytes a parameter, and 2 more of the
target or what is copied. Files are taken out of the system's cache before they are read.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.bench.options import ConversionOptions
from diffmoe_scale.cli.command import command_parser, output_file, output_folder, run_command, user_path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_conversion", __doc__)
    add = parser.add_argument
    add("--config", type=user_path, required=True, help="YAML file of the model")
    text = "where weights are written and removed again; the machine's temporary folder if none"
    add("--folder", type=output_folder, help=text)
    add("--shard-gib", type=float, default=5.0, metavar="SIZE", help="largest file of the target (5)")
    text = "how much of the source is copied at most, to know what the disk can do (8)"
    add("--copy-gib", type=float, default=8.0, metavar="SIZE", help=text)
    add("--threads", type=int, default=1, help="CPU threads (1)")
    add("--output", type=output_file, help="JSON file")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    output = given.pop("output")
    options = ConversionOptions(**given | {"settings": tuple(parsed.settings)})

    import torch

    from diffmoe_scale.bench.conversion import bench_conversion
    from diffmoe_scale.bench.timing import report

    found = bench_conversion(options)
    device = torch.device("cpu")
    print(
        f"{found.num_parameters:,} parameters, {found.source_bytes:,} bytes to {found.target_bytes:,}; "
        f"{found.copied_bytes:,} bytes copied"
    )
    report(
        found.rows,
        device,
        output,
        num_parameters=found.num_parameters,
        source_bytes=found.source_bytes,
        target_bytes=found.target_bytes,
        copied_bytes=found.copied_bytes,
    )


if __name__ == "__main__":
    sys.exit(main())
