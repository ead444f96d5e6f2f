"""`python -m diffmoe_scale.evaluate --checkpoint RUN`: scores of a trained model, and the run's report."""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.cli.command import command_parser, run_command
from diffmoe_scale.cli.output import check_output

MAX_PROMPTS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "evaluate",
        "Score a model of coloured shapes (tools/make_scenes.py) on six compositional suites, and write "
        "RUN/evaluation.json and RUN/report.html.",
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompts", type=int, default=96, help="prompts a suite (default: 96)")
    add("--seed", type=int, default=0, help="source of prompts and initial noise (default: 0)")
    add("--anyway", action="store_true", help="also a model whose captions are not about coloured shapes")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.evaluation.captions import check_captions
    from diffmoe_scale.evaluation.harness import evaluate
    from diffmoe_scale.evaluation.results import write_evaluation
    from diffmoe_scale.report.report import write_report
    from diffmoe_scale.report.scores import format_scores
    from diffmoe_scale.sampling.batch import check_seed
    from diffmoe_scale.sampling.loading import load_pipeline

    if not 2 <= parsed.prompts <= MAX_PROMPTS:
        raise ValueError(
            f"--prompts is {parsed.prompts}; expected 2 (captions are also shuffled) to {MAX_PROMPTS}"
        )
    check_seed(parsed.seed)
    pipeline = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    for written in (pipeline.directory.evaluation, pipeline.directory.report):
        check_output("--checkpoint", written)
    if pipeline.config.model.conditioning == "text" and not parsed.anyway:
        check_captions(pipeline.config, pipeline.directory.tokenizer)
    result = evaluate(pipeline, pipeline.config.sampling, prompts_per_suite=parsed.prompts, seed=parsed.seed)
    write_evaluation(pipeline.directory.evaluation, result)
    print(format_scores(result))
    print(write_report(pipeline.directory.path))


if __name__ == "__main__":
    sys.exit(main())
