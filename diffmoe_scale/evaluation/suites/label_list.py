"""Labels of a class-conditional model: pictures for metrics such as FID, by DiT's protocol 50 of each of 1000
classes."""

from dataclasses import dataclass

from diffmoe_scale.evaluation.suites.suite import Suite, SuitePrompt


@dataclass(frozen=True, kw_only=True)
class LabelSuite(Suite):
    """The prompts are labels, 0 to `num_classes` - 1, as text."""

    num_classes: int


def label_suite(*, name: str, num_classes: int, copies: int) -> LabelSuite:
    """All labels of a model."""
    prompts = [SuitePrompt(str(label)) for label in range(num_classes)]
    return LabelSuite(kind="labels", name=name, prompts=prompts, copies=copies or 1, num_classes=num_classes)
