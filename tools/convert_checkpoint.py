"""Converts checkpoints: a run's weights to safetensors files, models of the DiT family (DiT, SiT, DiffMoE and
its siblings) to ours and back, ours to folders of diffusers and back."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffmoe_scale.cli.arguments import WEIGHTS
from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.config.check import require

if TYPE_CHECKING:  # read by annotations alone: --help answers without torch
    from diffmoe_scale.checkpoint.stored import StoredWeights
    from diffmoe_scale.convert.convert import Preparation

EXAMPLES = """examples:
  convert_checkpoint runs/demo demo.safetensors
  convert_checkpoint runs/large large --dtype bf16 --shard-gib 4 --average 5
  convert_checkpoint DiffMoE.pt diffmoe.safetensors model.heads=16
  convert_checkpoint DiT-XL-2-256x256.pt dit.safetensors diffusion.kind=ddpm
  convert_checkpoint diffmoe.safetensors DiffMoE.pt
  convert_checkpoint runs/demo demo_diffusers --to diffusers
  convert_checkpoint runs/demo demo_megatron --to megatron
  convert_checkpoint demo_diffusers again.safetensors

Training goes on from a safetensors export or from another run by run.initialize_from=PATH."""
TO_HELP = (
    "what to write: NAME.safetensors, a folder of such files, or NAME.pt with the names of DiT; it must not "
    "exist"
)
SETTINGS_HELP = (
    "settings that no tensor says: model.heads, diffusion.kind (ddpm or flow), autoencoder.path, moe.top_k, "
    "moe.capacity, ..."
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("convert_checkpoint", __doc__ or "", epilog=EXAMPLES)
    add = parser.add_argument
    text = (
        "what to read: a run directory (its newest checkpoint), one checkpoints/step_N folder, an export, a "
        "file of DiT, SiT or DiffMoE, or a folder of diffusers"
    )
    add("source", metavar="FROM", type=user_path, help=text)
    add("target", metavar="TO", type=user_path, help=TO_HELP)
    text = "averaged weights, those of the last step, or all (default: ema of a run, else all there are)"
    add("--weights", choices=(*WEIGHTS, "all"), default="", help=text)
    text = "number format of the weights; thresholds are kept as they are (default: fp32)"
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help=text)
    text = "largest size of a file of the folder, in GiB (default: one file)"
    add("--shard-gib", type=float, default=0.0, metavar="SIZE", help=text)
    text = "take the mean of the weights of a run's newest N checkpoints"
    add("--average", type=int, default=0, metavar="N", help=text)
    text = (
        "set the thresholds of a run's weights anew by N micro-batches of its training data: a mean of "
        "weights has other scores than each of them"
    )
    add("--calibrate", type=int, default=0, metavar="N", help=text)
    text = "compare the outputs of source and target on a fixed input (default: yes)"
    add("--verify", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = (
        "`diffusers`: a folder that DiffusionPipeline loads; `megatron`: one that "
        "megatron.core.dist_checkpointing loads; else TO's name says what is written"
    )
    add("--to", choices=("diffusers", "megatron"), default="", help=text)
    text = "for --to diffusers: experts in one tensor of each kind, or linear layers apart (default: stacked)"
    add("--experts", choices=("stacked", "separate"), default="stacked", help=text)
    text = "for --to diffusers: links to the weights of frozen networks instead of copies"
    add("--link", action="store_true", help=text)
    add("settings", nargs="*", metavar="key.sub=value", help=SETTINGS_HELP)
    return run_command(parser, _convert, arguments)


def _convert(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.convert.convert import Options, convert

    size = parsed.shard_gib
    require(size == 0 or 1e-6 <= size < 2**20, "--shard-gib", size, "0 (one file), or 1e-6 or more")
    require(0 <= parsed.average <= 1000, "--average", parsed.average, "0 (the newest alone) to 1000")
    for name, default in (("experts", "stacked"), ("link", False)):
        value = getattr(parsed, name)
        is_for = parsed.to == "diffusers" or value == default
        require(is_for, f"--{name}", value, f"{default} without --to diffusers")
    options = Options(
        weights=parsed.weights,
        dtype=parsed.dtype,
        shard_gib=parsed.shard_gib,
        average=parsed.average,
        is_verified=parsed.verify,
        settings=parsed.settings,
        to=parsed.to,
        experts=parsed.experts,
        links=parsed.link,
    )
    require(0 <= parsed.calibrate <= 100_000, "--calibrate", parsed.calibrate, "0 (as stored) to 100000")
    prepare = _recalibration(parsed.calibrate, parsed.settings) if parsed.calibrate else None
    print("\n".join(convert(parsed.source, parsed.target, options, prepare=prepare)))


def _recalibration(num_batches: int, settings: "Sequence[str]") -> "Preparation":
    from diffmoe_scale.train.recalibrate import recalibrate

    def prepare(stored: "StoredWeights", weights: str) -> "tuple[StoredWeights, list[str]]":
        require(weights != "all", "--weights", weights, "one kind of weights, which --calibrate is for")
        return recalibrate(stored, family=weights, num_batches=num_batches, settings=settings)

    return prepare


if __name__ == "__main__":
    sys.exit(main())
