"""Prompts of a file of the user's: pictures to look at, and for metrics such as FID."""

from pathlib import Path

from diffmoe_scale.evaluation.suites.suite import Suite, SuitePrompt
from diffmoe_scale.sampling.prompts import read_prompt_file


def prompt_suite(file: Path, *, name: str, copies: int) -> Suite:
    """Raises: ValueError for a file that holds no prompts, or asks for more than prompts."""
    rows = read_prompt_file(file)
    for number, row in enumerate(rows, start=1):
        if row.seed is not None or row.negative_prompt is not None:
            raise ValueError(
                f"prompt {number} of {file} has a seed or a negative prompt; in an evaluation all pictures "
                "are drawn alike: leave these columns out"
            )
    return Suite(
        kind="prompts", name=name, prompts=[SuitePrompt(row.prompt) for row in rows], copies=copies or 1
    )
