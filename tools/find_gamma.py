"""`python tools/find_gamma.py --checkpoint RUN --capacity 1.0`: the settings with which sampling costs that
much.

Prints them for `sample` and `evaluate`: `python -m diffmoe_scale.sample --checkpoint RUN --prompt "..."
$(python tools/find_gamma.py ...)`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.files import replace_file
from diffmoe_scale.sample import read_prompts
from diffmoe_scale.telemetry.log import setup_tool_logging


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Find the constant threshold that gives an average inference capacity; recorded in RUN/gamma.json."
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--capacity",
        type=float,
        default=1.0,
        help="average experts a token gets, over pictures and sampling steps (default: 1, a dense model's work)",
    )
    parser.add_argument(
        "--images", type=int, default=128, help="pictures drawn for each trial (default: 128)"
    )
    parser.add_argument(
        "--prompt-file",
        type=Path,
        help="a text file with one caption a line (default: captions of the run's shards)",
    )
    parser.add_argument("--seed", type=int, default=0, help="source of the initial noise (default: 0)")
    parsed = parser.parse_intermixed_args(arguments)
    setup_tool_logging()
    try:
        print(run(parsed))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(parsed: argparse.Namespace) -> str:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.sampling.calibration import choose_prompts, find_gamma
    from diffmoe_scale.sampling.loading import load_pipeline

    if parsed.images < 1:
        raise ValueError(f"--images is {parsed.images}; expected at least 1")
    model = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    prompts: Sequence[str | int] = read_prompts(parsed.prompt_file)[: parsed.images] or choose_prompts(
        model.config, parsed.images
    )
    trials = find_gamma(model, prompts, model.config.sampling, capacity=parsed.capacity, seed=parsed.seed)
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
    return f"sampling.selection=interval sampling.gamma={trials[-1].gamma:.5e}"


if __name__ == "__main__":
    sys.exit(main())
