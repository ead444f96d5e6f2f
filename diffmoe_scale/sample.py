"""`python -m diffmoe_scale.sample --checkpoint RUN --prompt "..."`: pictures from a trained model."""

import argparse
import logging
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.cli.output import check_output

EXAMPLES = """examples:
  sample --checkpoint runs/demo --prompt "a red circle" --count 8
  sample --checkpoint runs/demo --prompts prompts.csv --output pictures --format webp
  sample --checkpoint runs/demo --prompt "a star" --count 1 --output star.png sampling.guidance=3.0
  sample --checkpoint runs/demo --prompts prompts.txt --count 1 --output pictures.npz
  torchrun --nproc-per-node 8 -m diffmoe_scale.sample --checkpoint runs/demo --prompts x.txt --output pictures
"""
MAX_COUNT = 1_000_000
OUTPUT_HELP = (
    "folder for the pictures and grid.png, or one .npz file for all pictures: a drawing that was stopped is "
    "gone on with there, and pictures drawn otherwise are refused. Or, for one picture, its file (.png, "
    ".jpg, .webp), or, for several, that of their grid (.png), with the pictures in a folder beside it: "
    "there the next free name NAME-2, NAME-3, ... is taken (default: RUN/samples/sample-stepN-seedS and "
    "....png)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "sample",
        "Draw pictures and write each as a file that says how it was made, and all as one captioned grid.",
        epilog=EXAMPLES,
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompt", action="append", default=[], help="a caption; may be given several times")
    add(
        "--prompts",
        "--prompt-file",
        type=user_path,
        metavar="FILE",
        help="captions: .txt (one a line), .jsonl, .csv or .tsv (columns prompt, negative_prompt, seed)",
    )
    add(
        "--label",
        action="append",
        type=int,
        default=[],
        help="a class label, for class-conditional models; may be given several times",
    )
    add("--negative-prompt", default="", help="what guidance leads away from (default: the empty caption)")
    add("--count", type=int, default=4, help="pictures a caption (default: 4)")
    add("--seed", type=int, default=0, help="source of the initial noise (default: 0)")
    add("--output", type=user_path, help=OUTPUT_HELP)
    add(
        "--format",
        choices=("png", "jpeg", "webp", "npz"),
        help="of the single pictures (default: png, or that of --output FILE); npz is one array of all",
    )
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables
    from diffmoe_scale.sampling.batch import check_seed, latent_shape
    from diffmoe_scale.sampling.generate import check_requests
    from diffmoe_scale.sampling.loading import load_pipeline
    from diffmoe_scale.sampling.output import choose_output, write_pictures
    from diffmoe_scale.sampling.prompts import PromptRow, decode_argument, make_requests, read_prompt_file

    if adopt_launcher_variables() > 0:
        logging.getLogger("diffmoe_scale").setLevel(logging.WARNING)
    if not 1 <= parsed.count <= MAX_COUNT:
        raise ValueError(f"--count is {parsed.count}; expected 1 to {MAX_COUNT}")
    check_seed(parsed.seed)
    rows: list[PromptRow | int] = [PromptRow(decode_argument(text)) for text in parsed.prompt]
    rows += read_prompt_file(parsed.prompts) if parsed.prompts else []
    rows += parsed.label
    if not rows:
        raise ValueError("nothing to draw: give --prompt, --prompts or, for a model of classes, --label")
    output = choose_output(parsed.output, parsed.format, num_pictures=len(rows) * parsed.count)
    if output.path is not None:
        check_output("--output", output.path, is_folder=not output.is_file)
    pipeline = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    conditioning = pipeline.config.model.conditioning
    if any(isinstance(row, int) != (conditioning == "class") for row in rows):
        option = "--label" if conditioning == "class" else "--prompt or --prompts"
        raise ValueError(
            f"{parsed.checkpoint} is a {conditioning}-conditional model; give {option} and nothing else"
        )
    requests = make_requests(
        rows, count=parsed.count, seed=parsed.seed, negative_prompt=decode_argument(parsed.negative_prompt)
    )
    check_requests(requests, pipeline.config, pipeline.config.sampling)
    latent_shape(pipeline.networks, pipeline.config.sampling)
    name = f"sample-step{pipeline.step}-seed{parsed.seed}"
    default = pipeline.directory.samples / name
    if output.path is None:
        check_output("the default --output", default, is_folder=True)
    for line in write_pictures(pipeline, requests, output, default=default, columns=parsed.count):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
