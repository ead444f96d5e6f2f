"""Shows what a checkpoint is (a run's, an export, or of DiT, SiT, DiffMoE or diffusers), what its weights are
like, and how two differ."""

import argparse
import json
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, run_command, user_path

EXAMPLES = """examples:
  inspect_checkpoint runs/demo
  inspect_checkpoint runs/demo/checkpoints/step_00001000 runs/demo/checkpoints/step_00002000
  inspect_checkpoint DiT-XL-2-256x256.pt --json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("inspect_checkpoint", __doc__ or "", epilog=EXAMPLES)
    add = parser.add_argument
    text = (
        "run directory, checkpoints/step_N folder, .safetensors file or folder of them, .pt file, folder of "
        "diffusers"
    )
    add("checkpoint", type=user_path, help=text)
    add("other", nargs="?", type=user_path, help="another one: how its tensors differ from the first's")
    add("--json", action="store_true", help="print one JSON object")
    return run_command(parser, _inspect, arguments)


def _inspect(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.convert.inspect import compare, describe, describe_difference, inspect, open_any

    one = open_any(parsed.checkpoint)
    if parsed.other is None:
        found = inspect(one)
        lines = describe(found)
    else:
        found = compare(one, open_any(parsed.other))
        lines = describe_difference(found)
    print(json.dumps(found, indent=1, default=str) if parsed.json else "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
