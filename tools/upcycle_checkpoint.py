"""Makes weights for another model of a checkpoint's: experts of a dense model, more or fewer experts, a dense
model of experts, more blocks, another size of pictures. Says whether its first step is the source's, and why
not."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffmoe_scale.cli.arguments import WEIGHTS
from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.config.check import require

if TYPE_CHECKING:  # read by annotations alone: --help answers without torch
    from diffmoe_scale.checkpoint.stored import StoredWeights

EXAMPLES = """examples:
  upcycle_checkpoint runs/dense moe.safetensors moe.num_experts=8 moe.shared_experts=1
  upcycle_checkpoint runs/dense moe.safetensors moe.num_experts=8 moe.router=token_choice
  upcycle_checkpoint runs/dense a.safetensors moe.num_experts=8 moe.expert_width_ratio=1 moe.shared_experts=4
  upcycle_checkpoint runs/moe wide.safetensors moe.num_experts=16 --noise 0.05
  upcycle_checkpoint runs/moe dense.safetensors moe.num_experts=0
  upcycle_checkpoint runs/moe deep.safetensors model.depth=12

Training begins with the target by run.initialize_from=TO and the same settings."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("upcycle_checkpoint", __doc__ or "", epilog=EXAMPLES)
    add = parser.add_argument
    text = "weights of this program: a run directory, one checkpoints/step_N folder, or an export"
    add("source", metavar="FROM", type=user_path, help=text)
    text = "what to write: NAME.safetensors, or a folder of such files; it must not exist"
    add("target", metavar="TO", type=user_path, help=text)
    text = "averaged weights, those of the last step, or all (default: ema of a run, else all there are)"
    add("--weights", choices=(*WEIGHTS, "all"), default="", help=text)
    text = "add so many standard deviations of each matrix to experts that are copies (default: 0)"
    add("--noise", type=float, default=0.0, metavar="SHARE", help=text)
    text = "compare the first output with the source's on a fixed input (default: yes)"
    add("--verify", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = "the settings of the new model that are not the source's"
    add("settings", nargs="+", metavar="key.sub=value", help=text)
    return run_command(parser, _upcycle, arguments)


def _upcycle(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.convert.convert import TORCH_SUFFIXES, Options, convert
    from diffmoe_scale.convert.upcycle import upcycle

    require(0 <= parsed.noise <= 10, "--noise", parsed.noise, "0 to 10")
    is_torch = parsed.target.suffix in TORCH_SUFFIXES
    require(not is_torch, "TO", str(parsed.target), "NAME.safetensors or a folder")

    def prepare(stored: "StoredWeights", weights: str) -> "tuple[StoredWeights, list[str]]":
        return upcycle(stored, weights, parsed.settings, noise=parsed.noise, is_verified=parsed.verify)

    options = Options(weights=parsed.weights, is_verified=parsed.verify)
    print("\n".join(convert(parsed.source, parsed.target, options, prepare=prepare)))


if __name__ == "__main__":
    sys.exit(main())
