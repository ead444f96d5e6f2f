"""The suite that the settings name."""

from dataclasses import replace
from pathlib import Path

from diffmoe_scale.config.evaluation import SuiteConfig
from diffmoe_scale.evaluation.suites.prompt_list import prompt_suite
from diffmoe_scale.evaluation.suites.scenes import scene_suite
from diffmoe_scale.evaluation.suites.suite import Suite


def build_suite(config: SuiteConfig, *, seed: int) -> Suite:
    """Raises: ValueError for a file of another benchmark, naming it and what is missing; OSError."""
    name, file = config.name or config.kind, Path(config.file)
    if config.kind == "scenes":
        return scene_suite(name=name, prompts=config.prompts, copies=config.pictures, seed=seed)
    suite: Suite
    match config.kind:
        case "prompts":
            suite = prompt_suite(file, name=config.name or file.stem, copies=config.pictures)
        case _:
            raise AssertionError(config.kind)
    return replace(suite, prompts=suite.prompts[: config.prompts]) if config.prompts else suite
