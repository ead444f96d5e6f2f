"""`python -m diffmoe_scale.sample --checkpoint RUN --prompt "..."`: pictures from a trained model."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.telemetry.log import silence_packages


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sample", description="Draw pictures for captions and write them as one PNG grid."
    )
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be given several times")
    parser.add_argument("--prompt-file", type=Path, help="a text file with one caption a line")
    parser.add_argument(
        "--label",
        action="append",
        type=int,
        default=[],
        help="a class label, for class-conditional models; may be given several times",
    )
    parser.add_argument("--count", type=int, default=4, help="pictures a caption (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="source of the initial noise (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="PNG file (default: RUN/samples/sample-stepN-seedS.png, or the next free -2, -3, ...)",
    )
    parsed = parser.parse_intermixed_args(arguments)
    try:
        print(run(parsed))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file that are not empty."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()] if path else []


def run(parsed: argparse.Namespace) -> str:
    silence_packages()
    # Imported here: `--help` and wrong arguments answer at once.
    import torch

    from diffmoe_scale.sampling.batch import number_requests
    from diffmoe_scale.sampling.generate import generate_batches
    from diffmoe_scale.sampling.loading import load_pipeline
    from diffmoe_scale.sampling.loads import LoadByTime
    from diffmoe_scale.telemetry.picture_grid import save_image_grid

    prompts: list[str] | list[int] = [*parsed.prompt, *read_prompts(parsed.prompt_file), *parsed.label]
    loaded = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    wants_labels = loaded.config.model.conditioning == "class"
    if not prompts or any(isinstance(prompt, int) != wants_labels for prompt in prompts):
        option = "--label" if wants_labels else "--prompt or --prompt-file"
        raise ValueError(
            f"{parsed.checkpoint} is a {loaded.config.model.conditioning}-conditional model; give {option} at least once and nothing else"
        )
    out_of_range = [label for label in parsed.label if not 0 <= label < loaded.config.model.num_classes]
    if out_of_range:
        raise ValueError(f"--label is {out_of_range[0]}; expected 0 to {loaded.config.model.num_classes - 1}")
    if parsed.count < 1:
        raise ValueError(f"--count is {parsed.count}; expected at least 1")
    repeated = [prompt for prompt in prompts for _ in range(parsed.count)]
    loads, images = LoadByTime(), []
    for batch in generate_batches(
        loaded.networks, number_requests(repeated, seed=parsed.seed), loaded.config.sampling
    ):
        images.append(batch.images_BCHW.float().cpu())
        loads.merge(batch.loads)
    output = parsed.output or _free(
        loaded.directory.samples / f"sample-step{loaded.step}-seed{parsed.seed}.png"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    save_image_grid(
        torch.cat(images),
        [str(prompt) for prompt in repeated],
        output,
        columns=parsed.count,
    )
    return f"{output}: {len(repeated)} picture{'s' * (len(repeated) > 1)}, average inference capacity {loads.capacity:.3f}"


def _free(path: Path) -> Path:
    """The path, or the first of PATH-2, PATH-3, ... that is no file yet."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], others) if not candidate.exists())


if __name__ == "__main__":
    sys.exit(main())
