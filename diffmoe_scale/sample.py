"""`python -m diffmoe_scale.sample --checkpoint RUN --prompt "..."`: pictures from a trained model."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.config.train import SamplingConfig


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sample", description="Draw pictures for captions and write them as one PNG grid.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="run directory (its newest complete checkpoint) or one checkpoints/step_N folder"
    )
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be given several times")
    parser.add_argument("--prompt-file", type=Path, help="a text file with one caption a line")
    parser.add_argument(
        "--label", action="append", type=int, default=[], help="a class label, for class-conditional models; may be given several times"
    )
    parser.add_argument("--count", type=int, default=4, help="pictures a caption (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="source of the initial noise (default: 0)")
    parser.add_argument("--output", type=Path, help="PNG file (default: RUN/samples/sample-stepN-seedS.png)")
    parser.add_argument("--weights", choices=("ema", "master"), default="ema", help="averaged or last weights (default: ema)")
    add_sampling_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        print(run(parsed))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that override the run's `sampling` settings."""
    group = parser.add_argument_group("sampling (default: the run's settings)")
    group.add_argument("--steps", type=int, help="Euler steps")
    group.add_argument("--guidance", type=float, help="classifier-free guidance scale; 1 is none")
    group.add_argument("--selection", choices=("threshold", "threshold_count", "interval", "static"), help="how experts choose tokens")
    group.add_argument("--gamma", type=float, help="the constant threshold of --selection interval")
    group.add_argument("--batch", type=int, help="pictures drawn at once")


def chosen_sampling(defaults: SamplingConfig, parsed: argparse.Namespace) -> SamplingConfig:
    given = {name: getattr(parsed, name) for name in ("steps", "guidance", "selection", "gamma", "batch")}
    return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def run(parsed: argparse.Namespace) -> str:
    # Imported here: `--help` and wrong arguments answer at once.
    import torch

    from diffmoe_scale.evaluation.pipeline import draw, load_pipeline
    from diffmoe_scale.telemetry.plots import save_image_grid

    prompts: list[str] | list[int] = [*parsed.prompt, *(parsed.prompt_file.read_text().splitlines() if parsed.prompt_file else []), *parsed.label]
    loaded = load_pipeline(parsed.checkpoint, weights=parsed.weights)
    wants_labels = loaded.config.model.conditioning == "class"
    if not prompts or any(isinstance(prompt, int) != wants_labels for prompt in prompts):
        option = "--label" if wants_labels else "--prompt or --prompt-file"
        raise ValueError(
            f"{parsed.checkpoint} is a {loaded.config.model.conditioning}-conditional model; give {option} at least once and nothing else"
        )
    if parsed.count < 1:
        raise ValueError(f"--count is {parsed.count}; expected at least 1")
    repeated = [prompt for prompt in prompts for _ in range(parsed.count)]
    generated = draw(loaded.pipeline, repeated, chosen_sampling(loaded.config.sampling, parsed), seed=parsed.seed)
    output = parsed.output or loaded.directory.samples / f"sample-step{loaded.step}-seed{parsed.seed}.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    save_image_grid(generated.images_BCHW.to(torch.float32), [str(prompt) for prompt in repeated], output, columns=parsed.count)
    return f"{output}: {len(repeated)} pictures, average inference capacity {generated.capacity:.3f}"


if __name__ == "__main__":
    sys.exit(main())
