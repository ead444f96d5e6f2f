"""Computes the latents and text features of shards once, before training: shards of KEY.safetensors beside
captions and labels."""

import argparse
import os
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_folder, run_command, user_path
from diffmoe_scale.prepare.resumable import resumable

EXAMPLES = """examples:
  python tools/cache_features.py --config configs/captions_64.yaml --input 'shards/train-*.tar' \\
      --output features autoencoder.kind=diffusers autoencoder.path=sd-vae
  torchrun --nproc-per-node 8 tools/cache_features.py --config my.yaml --input 'shards/*.tar' \\
      --output features
settings: `python -m diffmoe_scale.pretrain --help` lists them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(_parser(), resumable(_cache), arguments)


def _cache(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.config.load import load_config
    from diffmoe_scale.parallel.device import choose_device, share_cores
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables
    from diffmoe_scale.prepare.features import Share, cache_features
    from diffmoe_scale.prepare.options import FeatureOptions
    from diffmoe_scale.telemetry.log import silence_packages

    silence_packages()
    given = vars(parsed)
    config = load_config(given.pop("config"), given.pop("settings"))
    options = FeatureOptions(**given)
    rank = adopt_launcher_variables()
    local_rank = int(os.environ["LOCAL_RANK"])
    share_cores(local_rank)
    share = Share(rank, int(os.environ["WORLD_SIZE"]), choose_device(local_rank))
    cache_features(options, config, share)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "cache_features",
        f"{__doc__}\nStarted by torchrun or srun, each rank takes its share of the shards; the same command "
        "again goes on where\nit was stopped; changed shards or settings are refused with the difference. "
        "Latents are the autoencoder's\nmean, as in training from pictures.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    text = "YAML file of the training; its autoencoder, text, model, data and buckets settings count"
    add("--config", type=user_path, required=True, help=text)
    text = "shards of pictures: a path, glob or brace list; may be given several times"
    add("--input", action="append", required=True, help=text)
    text = "folder to make, with shards of the same names"
    add("--output", type=output_folder, required=True, help=text)
    text = "stored numbers (default: bf16; fp8 is e4m3, half the size)"
    add("--precision", choices=("bf16", "fp8"), default="bf16", help=text)
    add("--batch", type=int, default=32, help="pictures encoded at once (default: 32)")
    text = (
        "largest size of the output in bytes, such as 500G; more is refused before the start (default: the "
        "free space)"
    )
    add("--budget", default="", help=text)
    add("--dry-run", action="store_true", help="print the size and stop")
    add("--overwrite", action="store_true", help="replace features made with other settings")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
