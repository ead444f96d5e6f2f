"""`python tools/find_gamma.py --checkpoint RUN --capacity 1.0`: the settings with which sampling costs that
much.

Prints them for `sample` and `evaluate`: `python -m diffmoe_scale.sample --checkpoint RUN --prompt "..."
$(python tools/find_gamma.py ...)`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.cli.output import check_output
from diffmoe_scale.files import replace_file

MAX_IMAGES = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "find_gamma",
        "Find the constant threshold that gives an average inference capacity; recorded in RUN/gamma.json.",
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--capacity",
        type=float,
        default=1.0,
        help="average experts a token gets, over pictures and steps (default: 1, a dense model's work)",
    )
    add("--images", type=int, default=128, help="pictures drawn for each trial (default: 128)")
    add(
        "--prompts",
        "--prompt-file",
        type=user_path,
        metavar="FILE",
        help="captions, as for sample (default: captions of the run's shards)",
    )
    add("--seed", type=int, default=0, help="source of the initial noise (default: 0)")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.sampling.batch import check_seed
    from diffmoe_scale.sampling.calibration import calibrate, collect_prompts
    from diffmoe_scale.sampling.loading import load_pipeline
    from diffmoe_scale.sampling.prompts import read_prompt_file

    if not 1 <= parsed.images <= MAX_IMAGES:
        raise ValueError(f"--images is {parsed.images}; expected 1 to {MAX_IMAGES}")
    if not math.isfinite(parsed.capacity):
        raise ValueError(f"--capacity is {parsed.capacity}; expected a finite number above 0")
    check_seed(parsed.seed)
    rows = read_prompt_file(parsed.prompts)[: parsed.images] if parsed.prompts else []
    model = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    check_output("--checkpoint", model.directory.gamma)
    prompts = [row.prompt for row in rows] or collect_prompts(model.config, parsed.images)
    found = calibrate(model, prompts, model.config.sampling, capacity=parsed.capacity, seed=parsed.seed)
    trials = found.trials
    record = {
        "checkpoint": str(model.checkpoint),
        "weights": parsed.weights,
        "capacity_asked_for": parsed.capacity,
        **asdict(trials[-1]),
        "images": len(prompts),
        "seed": parsed.seed,
        "sampling": asdict(model.config.sampling),
        "trials": [asdict(trial) for trial in trials],
    }
    replace_file(model.directory.gamma, json.dumps(record, indent=1).encode())
    # With a point, or YAML reads 1e-05 as a word.
    print(f"sampling.selection=interval sampling.gamma={trials[-1].gamma:.5e}")


if __name__ == "__main__":
    sys.exit(main())
