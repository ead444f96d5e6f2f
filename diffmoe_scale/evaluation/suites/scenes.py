"""The six suites of coloured shapes as one suite with exact scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffmoe_scale.evaluation.suites.suite import Suite, SuitePrompt
from diffmoe_scale.scenes.suites import SUITES, Prompt, build_suite, score_images

PROMPTS = 96
"""Of each of the six, unless the settings say otherwise."""


@dataclass(frozen=True, kw_only=True)
class SceneSuite(Suite):
    """A picture passes if it shows exactly what its prompt asks for."""

    means_of_groups = True

    def noise_of(self, place: int) -> int:
        """Each of the six suites has its noise from 0 on, as `evaluate --checkpoint` draws them."""
        prompt, copy = divmod(place, self.copies)
        return prompt % (len(self.prompts) // len(SUITES)) * self.copies + copy

    def check(self, images_BCHW: Tensor, places: Sequence[int]) -> list[float]:
        asked = [self.prompt_of(place) for place in places]
        prompts = [Prompt(prompt.text, dict(prompt.metadata)) for prompt in asked]
        return [float(is_right) for is_right in score_images(images_BCHW, prompts)]


def scene_suite(*, name: str, prompts: int, copies: int, seed: int) -> SceneSuite:
    """`prompts` of each of the six suites; a pure function of its arguments."""
    asked = [
        SuitePrompt(prompt.text, group, prompt.metadata)
        for group in SUITES
        for prompt in build_suite(group, num_prompts=prompts or PROMPTS, seed=seed)
    ]
    return SceneSuite(kind="scenes", name=name, prompts=asked, copies=copies or 1)
