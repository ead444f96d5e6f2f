"""`python -m diffmoe_scale.evaluate --checkpoint RUN`: scores of a trained model, and the run's report."""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.telemetry.log import setup_tool_logging


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="evaluate",
        description="Score a model on the compositional suites and write RUN/evaluation.json and RUN/report.html.",
    )
    add_model_arguments(parser)
    parser.add_argument("--prompts", type=int, default=96, help="prompts a suite (default: 96)")
    parser.add_argument(
        "--seed", type=int, default=0, help="source of prompts and initial noise (default: 0)"
    )
    parsed = parser.parse_intermixed_args(arguments)
    setup_tool_logging()
    try:
        run(parsed)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help` and wrong arguments answer at once.
    from diffmoe_scale.evaluation.harness import evaluate
    from diffmoe_scale.evaluation.results import write_evaluation
    from diffmoe_scale.report.report import write_report
    from diffmoe_scale.report.scores import format_scores
    from diffmoe_scale.sampling.loading import load_pipeline

    if parsed.prompts < 2:
        raise ValueError(
            f"--prompts is {parsed.prompts}; expected at least 2, since captions are also shuffled"
        )
    loaded = load_pipeline(parsed.checkpoint, weights=parsed.weights, settings=parsed.settings)
    result = evaluate(loaded, loaded.config.sampling, prompts_per_suite=parsed.prompts, seed=parsed.seed)
    write_evaluation(loaded.directory.evaluation, result)
    print(format_scores(result))
    print(write_report(loaded.directory.path))


if __name__ == "__main__":
    sys.exit(main())
