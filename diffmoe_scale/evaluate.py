"""`python -m diffmoe_scale.evaluate`: scores of one model with the report of its run (`--checkpoint RUN`), or
of many checkpoints by many suites (`--config FILE`)."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.arguments import CHECKPOINT_HELP, SETTINGS_HELP, WEIGHTS, WEIGHTS_HELP
from diffmoe_scale.cli.command import command_parser, run_command, user_path
from diffmoe_scale.cli.output import check_output
from diffmoe_scale.config.check import RunError

MAX_PROMPTS = 1_000_000
MAX_PARTS = 1_000_000
PART = re.compile(r"([1-9]\d{0,6})/([1-9]\d{0,6})", re.ASCII)
EXAMPLES = """examples:
  evaluate --checkpoint runs/demo
  evaluate --config configs/evaluate_demo.yaml sampling.steps=[10,20]
  evaluate --config configs/evaluate_demo.yaml --part 3/16
  evaluate --config configs/evaluate_demo.yaml --watch
  torchrun --nproc-per-node 8 -m diffmoe_scale.evaluate --config configs/evaluate_demo.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "evaluate",
        "With --checkpoint: score a model of coloured shapes (tools/make_scenes.py) on six compositional "
        "suites, and write RUN/evaluation.json and RUN/report.html. With --config: draw the pictures of "
        "suites of prompts by many checkpoints and settings, score and compare them; what is there already "
        "is not done again.",
        epilog=EXAMPLES,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=user_path, help=CHECKPOINT_HELP)
    what.add_argument("--config", type=user_path, metavar="FILE", help="YAML file of an evaluation")
    one = parser.add_argument_group("with --checkpoint")
    one.add_argument("--weights", choices=WEIGHTS, help=WEIGHTS_HELP)
    one.add_argument("--prompts", type=int, help="prompts a suite (default: 96)")
    one.add_argument("--seed", type=int, help="source of prompts and initial noise (default: 0)")
    one.add_argument("--anyway", action="store_true", help="also a model whose captions are not about shapes")
    many = parser.add_argument_group("with --config")
    many.add_argument("--part", metavar="3/16", help="draw the third of 16 parts, for job arrays")
    many.add_argument(
        "--watch", action="store_true", help="evaluate new checkpoints until the runs have ended"
    )
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help=SETTINGS_HELP)
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    is_one = parsed.checkpoint is not None
    others = ("part", "watch") if is_one else ("weights", "prompts", "seed", "anyway")
    for name in others:
        if getattr(parsed, name) not in (None, False):
            mode = "--config" if is_one else "--checkpoint"
            raise ValueError(
                f"--{name} goes with {mode}; {'leave it out' if is_one else 'set it in the file'}"
            )
    if is_one:
        run_one(parsed)
    else:
        run_many(parsed)


def run_one(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.evaluation.captions import check_captions
    from diffmoe_scale.evaluation.results import write_evaluation
    from diffmoe_scale.evaluation.scene_scores import evaluate
    from diffmoe_scale.report.report import write_report
    from diffmoe_scale.report.scores import format_scores
    from diffmoe_scale.sampling.batch import check_seed
    from diffmoe_scale.sampling.loading import load_pipeline

    prompts = 96 if parsed.prompts is None else parsed.prompts
    seed = 0 if parsed.seed is None else parsed.seed
    if not 2 <= prompts <= MAX_PROMPTS:
        raise ValueError(f"--prompts is {prompts}; expected 2 (captions are also shuffled) to {MAX_PROMPTS}")
    check_seed(seed)
    pipeline = load_pipeline(parsed.checkpoint, weights=parsed.weights or "ema", settings=parsed.settings)
    for written in (pipeline.directory.evaluation, pipeline.directory.report):
        check_output("--checkpoint", written)
    if pipeline.config.model.conditioning == "text" and not parsed.anyway:
        check_captions(pipeline.config, pipeline.directory.tokenizer)
    result = evaluate(pipeline, pipeline.config.sampling, prompts_per_suite=prompts, seed=seed)
    write_evaluation(pipeline.directory.evaluation, result)
    print(format_scores(result))
    print(write_report(pipeline.directory.path))


def run_many(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.config.evaluation import load_harness_config
    from diffmoe_scale.evaluation.harness.drawing import Part
    from diffmoe_scale.evaluation.harness.run import run_evaluation
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables
    from diffmoe_scale.report.evaluation import write_evaluation_report

    index, count = read_part(parsed.part or "1/1")
    config = load_harness_config(parsed.config, parsed.settings)
    check_output("evaluation.output", Path(config.evaluation.output), is_folder=True)
    rank = adopt_launcher_variables()
    if rank > 0:
        logging.getLogger("diffmoe_scale").setLevel(logging.WARNING)
    part = Part(index - 1, count)
    output = Path(config.evaluation.output)
    gone = run_evaluation(
        config,
        part=part,
        watch=parsed.watch,
        report=lambda results: print(write_evaluation_report(output, results), flush=True),
    )
    if gone and not parsed.watch:
        raise RunError("; ".join(gone))


def read_part(text: str) -> tuple[int, int]:
    """Number and count of `3/16`. Raises: ValueError."""
    match = PART.fullmatch(text)
    if not match or int(match[1]) > int(match[2]) or int(match[2]) > MAX_PARTS:
        raise ValueError(f"--part is {text!r:.80}; expected NUMBER/COUNT, 1/16 to 16/16 for 16 parts")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
