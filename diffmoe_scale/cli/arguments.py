"""The arguments that name a trained model; `sampling.loading.load_pipeline` takes them."""

import argparse
from typing import get_args

from diffmoe_scale.cli.command import user_path
from diffmoe_scale.config.sampling import Weights

SETTINGS_HELP = (
    "settings that override the run's: sampling.steps, sampling.guidance, sampling.capacity, "
    "sampling.selection (threshold, threshold_count, interval, static), sampling.gamma, sampling.batch, "
    "moe.backend, ..."
)
CHECKPOINT_HELP = (
    "run directory (its newest complete checkpoint), one checkpoints/step_N folder, or a .safetensors export"
)
WEIGHTS = get_args(Weights)
WEIGHTS_HELP = "averaged weights, those of optimizer.ema2_decay, or the last (default: ema)"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `checkpoint`, `weights` and `settings`."""
    parser.add_argument("--checkpoint", type=user_path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--weights", choices=WEIGHTS, default="ema", help=WEIGHTS_HELP)
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help=SETTINGS_HELP)
