"""The prompts of a sweep of capacities: those that are drawn, and those of its calibrations."""

import math
from dataclasses import dataclass, replace

from diffmoe_scale.files import replace_file
from diffmoe_scale.sampling.calibration import collect_prompts
from diffmoe_scale.sampling.call_capacity import kind_of_caption
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.scenes.suites import SUITES, Prompt, build_suite

OTHERS = "others"
CALIBRATION_SEED = 2**31
"""Of the suites' prompts that thresholds are found with."""


@dataclass(frozen=True)
class Group:
    """Prompts that are drawn and scored together; `scenes` where their pictures can be checked."""

    name: str
    prompts: list[str | int]
    scenes: list[Prompt]

    def kind_of(self, prompt: str | int) -> str:
        """The suite, the class, or how long a caption is."""
        if isinstance(prompt, int):
            return f"class {prompt}"
        return self.name if self.scenes else kind_of_caption(prompt)


def make_groups(
    pipeline: Pipeline, *, has_scenes: bool, has_metrics: bool, count: int, others: int, seed: int
) -> list[Group]:
    """The six suites of scenes, `count` prompts each; without them, and for metrics, `others` captions of the
    run's validation shards, or labels."""
    groups = []
    if has_scenes:
        suites = {name: build_suite(name, num_prompts=count, seed=seed) for name in SUITES}
        for name, prompts in suites.items():
            groups.append(Group(name, [prompt.text for prompt in prompts], prompts))
    if has_metrics or not has_scenes:
        groups.append(Group(OTHERS, list(collect_prompts(pipeline.config, others)), []))
    return groups


def calibrated_for_scenes(pipeline: Pipeline) -> Pipeline:
    """The model with prompts of the suites for its calibrations, evenly of all and chosen by another seed:
    validation captions ask for other scenes, whose thresholds would miss the capacity by some hundredths.

    Writes RUN/sweeps/calibration-prompts.txt. Raises: OSError.
    """
    sampling = pipeline.config.sampling
    count = math.ceil(sampling.calibration_images / len(SUITES))
    suites = [build_suite(name, num_prompts=count, seed=CALIBRATION_SEED) for name in SUITES]
    lines = [f"{prompt.text}\n" for row in zip(*suites, strict=True) for prompt in row]
    path = pipeline.directory.sweeps / "calibration-prompts.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(lines).encode())
    changed = replace(sampling, calibration_prompts=str(path))
    return replace(pipeline, config=replace(pipeline.config, sampling=changed))
