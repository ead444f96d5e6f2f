"""One cell of the evaluation: weights, suite and settings of sampling; its name says what was drawn."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation.harness.targets import Target
from diffmoe_scale.evaluation.suites.label_list import LabelSuite
from diffmoe_scale.evaluation.suites.suite import Suite
from diffmoe_scale.sampling.batch import Request
from diffmoe_scale.sampling.generate import check_requests, override_sampling
from diffmoe_scale.sampling.metadata import is_seen
from diffmoe_scale.sampling.thresholds import check_calibration


@dataclass(frozen=True)
class Job:
    """The pictures of a suite by some weights. `varied` are the settings that the evaluation names."""

    target: Target
    suite: Suite
    sampling: SamplingConfig
    varied: Mapping[str, Any]
    seed: int

    @property
    def fingerprint(self) -> str:
        """Of everything that a picture depends on. Settings at their default are left out: a setting that a
        later version adds does not make done work undone."""
        defaults, chosen = asdict(SamplingConfig()), asdict(self.sampling)
        settings = {
            name: value for name, value in chosen.items() if is_seen(name, chosen) and value != defaults[name]
        }
        content = [self.target.identity, self.suite.fingerprint, settings, self.seed]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        suite = re.sub(r"[^A-Za-z0-9.]+", "_", self.suite.name)[:60]
        return f"{suite}-step{self.target.step:08d}-{self.target.weights}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """For progress and errors."""
        varied = "".join(f", {name} {value}" for name, value in self.varied.items())
        return f"{self.suite.name} of step {self.target.step} ({self.target.weights}{varied})"

    def folder(self, output: Path) -> Path:
        return output / self.name

    def check_calibration(self) -> None:
        """Raises: ValueError if `sampling.capacity` cannot be calibrated, naming the checkpoint."""
        target = self.target
        try:
            check_calibration(target.config, self.sampling, checkpoint=target.path, weights=target.weights)
        except ValueError as error:
            raise ValueError(f"{target.path} cannot be sampled so: {error}") from error

    def request(self, place: int) -> Request:
        text = self.suite.prompt_of(place).text
        prompt = int(text) if isinstance(self.suite, LabelSuite) else text
        return Request(prompt, self.seed, self.suite.noise_of(place))


def make_jobs(
    targets: Sequence[Target], suites: Sequence[Suite], sampling: Mapping[str, Any], *, seed: int
) -> list[Job]:
    """All combinations, the weights outermost. Raises: ValueError for settings or prompts that do not fit one
    of the models, naming it."""
    jobs = []
    for target in targets:
        for suite in suites:
            _check_kind(target, suite)
        for varied in combinations(sampling):
            try:
                settings = override_sampling(target.config.sampling, varied)
                config = replace(target.config, sampling=settings)
                found = [Job(target, suite, settings, varied, seed) for suite in suites]
                check_requests([job.request(0) for job in found], config, settings)
            except ValueError as error:
                raise ValueError(f"{target.path} cannot be sampled so: {error}") from error
            jobs += found
    return jobs


def _check_kind(target: Target, suite: Suite) -> None:
    """Raises: ValueError for captions to a model of classes, or labels to another."""
    model = target.config.model
    if not isinstance(suite, LabelSuite):
        if model.conditioning == "class":
            raise ValueError(
                f"{target.path} is a class-conditional model (model.conditioning=class), and suite "
                f"{suite.name!r} holds captions; give it a suite of kind 'labels', in another evaluation"
            )
        return
    if model.conditioning != "class":
        raise ValueError(
            f"{target.path} is a model of captions, and suite {suite.name!r} holds labels; leave out one"
        )
    if suite.num_classes != model.num_classes:
        raise ValueError(
            f"suite {suite.name!r} has {suite.num_classes} classes, but {target.path} has "
            f"{model.num_classes}; set suites.N.classes to {model.num_classes}"
        )


def combinations(sampling: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The combinations of the values of each setting: one value, or a list."""
    values = [value if isinstance(value, list) else [value] for value in sampling.values()]
    for chosen in itertools.product(*values):
        yield dict(zip(sampling, chosen, strict=True))
